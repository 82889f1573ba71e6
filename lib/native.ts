// The only importer of the addon: finds the binary, loads it, and passes its functions on with the types that the binding generated
// (native_ops.ts). No other file in lib/ knows where the binary is.
import { statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { errorFromCode, UnsupportedError } from './errors.ts';
import type { NativeOps } from './native_ops.ts';

export type { DType, Handle } from './native_ops.ts';

/** One row of the binding: a function's name, its TypeScript signature, and whether it has a gradient. */
export interface NativeSignature {
  name: string;
  typescript: string;
  grad: 'differentiable' | 'noGrad' | 'plain';
}

export type Native = NativeOps & { signatures: NativeSignature[] };

const packageRoot = dirname(dirname(fileURLToPath(import.meta.url)));

/** Paths at which the binary may be, in the order in which they are tried. */
function candidates(): string[] {
  const explicit = process.env.BALORA_BINARY;
  if (explicit) return [resolve(explicit)];
  const platform = `${process.platform}-${process.arch}`;
  return [
    join(packageRoot, 'build', 'release', 'balora.node'),
    join(packageRoot, 'build', 'Release', 'balora.node'),
    join(packageRoot, 'prebuilds', platform, 'balora.node'),
  ];
}

/** Advice where no binary can be loaded. */
const kHowToGetIt =
  'The npm package has binaries for Linux on x64 with glibc 2.38 or newer (Debian 13, Ubuntu 24.04); elsewhere build a clone: ' +
  'docs/building.md. In a clone "npm run setup" builds one.';

/**
 * How kernel threads wait: they spin for some tenths of a millisecond between two regions of work, because waking one costs 40 us on a
 * virtual machine and a step has thousands of regions; after that they sleep, so that an idle engine leaves its cores to others.
 */
const kWaiting = { OMP_WAIT_POLICY: 'passive', GOMP_SPINCOUNT: '10000' };

/**
 * Calls a function that loads libgomp, which reads its settings once, from the environment. The variables are there for this call
 * alone: the environment belongs to the program that uses the library, and to its child processes. A policy of the user's own counts
 * instead, and `BALORA_OMP=off` leaves libgomp's defaults.
 */
function withWaiting<T>(body: () => T): T {
  const { env } = process;
  if (env.BALORA_OMP === 'off' || env.OMP_WAIT_POLICY !== undefined) return body();
  const added = Object.entries(kWaiting).filter(([name]) => env[name] === undefined);
  Object.assign(env, Object.fromEntries(added));
  try {
    return body();
  } finally {
    for (const [name] of added) delete env[name];
  }
}

function load(): Native {
  const require = createRequire(import.meta.url);
  const reasons: string[] = [];
  for (const path of candidates()) {
    try {
      const info = statSync(path, { throwIfNoEntry: false });
      if (info?.isFile() !== true) {
        reasons.push(`${path}: ${info === undefined ? 'not there' : 'not a file'}`);
        continue;
      }
      const native = withWaiting(() => require(path) as Native);
      native.setErrorFactory(errorFromCode);
      // Calling process.exit() runs C++ static destructors (oneDNN unmaps its kernels) without Node's clean-up hooks for the
      // environment: no kernel may be running by then.
      process.once('exit', () => native.abandonWork());
      return native;
    } catch (error) {
      reasons.push(`${path}: ${(error as Error).message}`);
    }
  }
  throw new UnsupportedError(
    `balora has no usable native binary for ${process.platform}-${process.arch} (Node ${process.version}). Tried:`,
    { lines: [...reasons.map((reason) => `  ${reason}`), ...kHowToGetIt.split('\n')] },
  );
}

export const native: Native = load();

/** The first stack frame outside the library, which is where the user called the op. */
function callSite(): string {
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 20;
  const frames = new Error().stack?.split('\n').slice(1) ?? [];
  Error.stackTraceLimit = stackTraceLimit;
  const outside = frames.find((frame) => !frame.includes(libraryFolder));
  return (outside ?? frames.at(-1) ?? '').trim();
}

/**
 * Runs `body` while a setting of the engine has a value.
 * @param set gives the setting a value and returns the one before
 */
export function withSetting<V, T>(set: (value: V) => V, value: V, body: () => T): T {
  const before = set(value);
  try {
    return body();
  } finally {
    set(before);
  }
}

const libraryFolder = dirname(fileURLToPath(import.meta.url));
/** In debug mode, the functions of the addon as they were before; null outside. */
let originals: Partial<Native> | null = null;

/** Whether debug mode is on, see {@link setDebugMode}. */
export function inDebugMode(): boolean {
  return originals !== null;
}

/**
 * Switches debug mode on or off. In debug mode every op remembers where JavaScript called it, and a failure on the engine's thread
 * names that place. Each call then costs a stack trace. A device that runs behind its kernels waits for each and checks it, so that
 * a fault names the op that made it. Returns the mode before.
 */
export function setDebugMode(enabled: boolean): boolean {
  const before = originals !== null;
  if (enabled === before) return before;
  const functions = native as unknown as Record<string, (...args: unknown[]) => unknown>;
  if (originals) {
    Object.assign(native, originals);
    native.setDebug(false);
    native.setCallSite('');
    originals = null;
    return before;
  }
  const replaced: Record<string, (...args: unknown[]) => unknown> = {};
  for (const { name, grad } of native.signatures) {
    if (grad === 'plain' && name !== 'backward') continue;
    const original = functions[name] as (...args: unknown[]) => unknown;
    replaced[name] = original;
    functions[name] = (...args) => {
      native.setCallSite(callSite());
      return original(...args);
    };
  }
  originals = replaced as Partial<Native>;
  native.setDebug(true);
  return before;
}

// Shared parts of the scripts for a machine with a GPU: the path of the plug-in, and a report of several parts.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inRoot, root, SetupError, say } from './shell.mjs';

/** Path of the plug-in that is measured; a named error where there is none. */
export function cudaPlugin() {
  const path = process.env.BALORA_CUDA_PLUGIN ?? inRoot('build', 'cuda', 'balora_cuda.so');
  if (existsSync(path)) return path;
  throw new SetupError(
    `There is no CUDA plug-in at ${path}: build it with "npm run build:cuda" (needs nvcc), or name one in BALORA_CUDA_PLUGIN.`,
  );
}

/** The environment of a child that uses the plug-in; a packed folder has its libraries in prebuilds. */
function cudaEnvironment() {
  const libraries = inRoot('prebuilds', `${process.platform}-${process.arch}`);
  const path = [libraries, process.env.LD_LIBRARY_PATH].filter(Boolean).join(':');
  return { ...process.env, BALORA_CUDA_PLUGIN: cudaPlugin(), LD_LIBRARY_PATH: path };
}

const kMostSeconds = 600;

/** Runs a program, and shows and returns its output. It is stopped after ten minutes, or where the budget ends. */
export function runCaptured(command, args, { budget = null } = {}) {
  const limit = 1000 * Math.min(kMostSeconds, Math.max(1, budget?.left ?? kMostSeconds));
  const started = performance.now();
  const result = spawnSync(command, args, {
    ...{ cwd: root, encoding: 'utf8', env: cudaEnvironment(), maxBuffer: 1 << 28, timeout: limit },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const seconds = (performance.now() - started) / 1000;
  const text = `${result.stdout ?? ''}${result.stderr ?? ''}`;
  const stopped = result.error?.code === 'ETIMEDOUT';
  const why = stopped ? `stopped after ${(limit / 1000).toFixed(0)} s` : result.error?.message;
  const reason = why === undefined ? '' : `\n${why}`;
  return { status: result.status ?? 1, stdout: result.stdout ?? '', text: text + reason, seconds };
}

/** A report in the making: `add` prints a part and keeps it; `write` leaves NAME.json and NAME.txt in the folder. */
export class Report {
  constructor(name, folder) {
    this.name = name;
    this.folder = folder;
    this.parts = [];
    this.lines = [];
  }
  add(part, line) {
    this.parts.push(part);
    this.lines.push(line);
    say(line);
    this.write(); // what was measured survives a machine that goes away
  }
  write() {
    mkdirSync(this.folder, { recursive: true });
    const json = { format: 1, date: new Date().toISOString(), parts: this.parts };
    writeFileSync(join(this.folder, `${this.name}.json`), `${JSON.stringify(json, null, 2)}\n`);
    writeFileSync(join(this.folder, `${this.name}.txt`), `${this.lines.join('\n')}\n`);
  }
}

/**
 * The rest of a number of seconds, counted from `startedAt` (milliseconds since the epoch). Parts that do not fit are named as
 * skipped instead of being cut off in their midst, or not run at all when the machine is taken away.
 */
export class Budget {
  constructor(seconds, startedAt = Date.now()) {
    this.end = startedAt + seconds * 1000;
  }
  get left() {
    return (this.end - Date.now()) / 1000;
  }
  /** The reason why a part that takes about so many seconds is skipped; null: it fits. */
  refusal(wanted) {
    const left = Math.max(0, this.left);
    return left >= wanted
      ? null
      : `skipped: takes about ${wanted} s, ${left.toFixed(0)} s are left of --seconds`;
  }
}

const kUsage = '[--output FOLDER] [--torch PYTHON] [--seconds N] [--device NAME] [--shapes tiny]';

/**
 * The options `--output FOLDER` (default build/cuda-report), `--torch PYTHON`, `--seconds N` (a budget for all parts; default
 * none), `--device NAME` (default cuda) and `--shapes tiny` (every part at a size too small to measure, to try the script itself).
 */
export function reportOptions(args) {
  const options = {
    ...{ output: inRoot('build', 'cuda-report'), torch: null, device: 'cuda' },
    ...{ seconds: Number.POSITIVE_INFINITY, shapes: 'all' },
  };
  for (let i = 0; i < args.length; ++i) {
    const name = args[i].replace(/^--/, '');
    if (!Object.hasOwn(options, name) || args[i + 1] === undefined) {
      throw new SetupError(`usage: ${kUsage}, got ${args.join(' ')}`);
    }
    options[name] = name === 'seconds' ? Number(args[++i]) : args[++i];
  }
  if (!(options.seconds > 0)) throw new SetupError(`usage: ${kUsage}, got ${args.join(' ')}`);
  return { ...options, budget: new Budget(options.seconds) };
}

/**
 * Initialisation of A and B: by the listed start that the configuration names, or by the caller's function. All values depend only
 * on the seed, the module's path and its weight: adapting one module more changes no other.
 */
import { createHash } from 'node:crypto';
import { withDevice } from '../device.ts';
import { ArgumentError, UnsupportedError } from '../errors.ts';
import type { Linear } from '../nn/linear.ts';
import { copy_, zeros } from '../ops/index.ts';
import { shown } from '../shown.ts';
import { computeOwned, scope, Tensor } from '../tensor.ts';
import { type LowRankPair, masterDType } from './low_rank.ts';
import type { CalibrationSettings, StartModule, Statistics } from './methods/method.ts';
import { START_NAMES, startNamed } from './methods/registry.ts';
import { checkQuantizable } from './quantized_base.ts';

/** First values of a module's pair. */
export interface InitialPair extends LowRankPair {
  /**
   * Whether the pair was computed from W (default false): then its product is subtracted, so that the model's outputs start
   * unchanged. It is kept frozen, and the plain export has twice the rank.
   */
  readonly fromWeight?: boolean;
}

/** First values of a module's pair, and what its adapter's own base is made of. */
export interface MadePair extends Required<InitialPair> {
  /** The pair that is taken off W before it is quantised, if the start has one of its own for that; null: it has none. */
  readonly less: LowRankPair | null;
}

/**
 * An initialisation of the caller's own, for `initLoraWeights`. It returns first values of the pairs of all adapted modules, in
 * their order: a (r,in) and b (out,r) in any float type. It is called once, without recording. The tensors that it returns are
 * copied, and others that it makes are freed.
 */
export type StartFunction = (modules: readonly StartModule[]) => readonly InitialPair[];

/** The part of a calibration for a module; see `StartModule`. */
export interface CalibratedModule {
  readonly statistics: Statistics;
  readonly settings: CalibrationSettings;
  readonly inputOf: string;
}

/** A module whose pair {@link initialPairs} makes. */
export interface PairTarget {
  readonly name: string;
  readonly r: number;
  readonly alpha: number;
  readonly scale: number;
  readonly linear: Linear;
  /** The adapter's seed. */
  readonly seed: number;
  /** The part of a calibration for it; left out: there is none. */
  readonly calibrated?: CalibratedModule;
}

/** The values that `initLoraWeights` may have, for messages. */
export const INIT_CHOICES = `${START_NAMES.join(', ')} or a function`;

/** Number of modules whose pairs are made at once: enough for all threads, few enough to keep the event loop responsive. */
const kBatch = 64;

/** The modules of each call of {@link initialPairs}, in batches; a function gets all of them in one call. */
export function* startBatches<T>(init: unknown, all: readonly T[]): Generator<readonly T[]> {
  const size = typeof init === 'function' ? Math.max(all.length, 1) : kBatch;
  for (let first = 0; first < all.length; first += size) yield all.slice(first, first + size);
}

/**
 * First values of the modules' pairs, in their order, as new tensors. All modules are on one device.
 * @throws UnsupportedError for a start that only PEFT knows, ArgumentError for pairs of a function that do not fit
 */
export function initialPairs(
  init: boolean | string | StartFunction,
  targets: readonly PairTarget[],
): MadePair[] {
  const device = targets[0]?.linear.weight.device;
  const body =
    typeof init === 'function' ? pairsOfFunction(init, targets) : pairsOfStart(init, targets);
  return withDevice(device, () => computeOwned(body));
}

/**
 * A digest of the values that a start function returned. It is part of a run's identity, so that a run is resumed only with the
 * start that it began with; the function's name and the source of its values do not matter.
 * @throws ArgumentError for a value that is not finite; the pairs are freed
 */
export async function digestOf(
  pairs: readonly Required<InitialPair>[],
  targets: readonly PairTarget[],
): Promise<string> {
  const hash = createHash('sha256');
  for (const [i, { a, b, fromWeight }] of pairs.entries()) {
    const { name } = targets[i] as PairTarget;
    hash.update(`${name} ${fromWeight}`);
    for (const [key, tensor] of Object.entries({ a, b })) {
      const values = (await tensor.data()) as Float32Array | Float64Array;
      const bad = firstNotFinite(values);
      if (bad >= 0) {
        for (const pair of pairs) for (const made of [pair.a, pair.b]) made.dispose();
        refuse(name, `element ${bad} of ${key} must be finite, got ${values[bad]}`);
      }
      hash.update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    }
  }
  return hash.digest('hex').slice(0, 16);
}

/** Index of the first value that is not finite, -1 if there is none. A loop, since findIndex takes several times as long. */
function firstNotFinite(values: Float32Array | Float64Array): number {
  for (let at = 0; at < values.length; at++) if (!Number.isFinite(values[at])) return at;
  return -1;
}

function pairsOfStart(init: boolean | string, targets: readonly PairTarget[]) {
  const start = startNamed(init);
  if (start === null) {
    throw new UnsupportedError(
      `initLoraWeights ${shown(init)} is not supported; known: ${INIT_CHOICES}`,
    );
  }
  const { fromWeight } = start;
  const quantizes = start.quantizes !== undefined;
  if (quantizes) for (const target of targets) checkQuantizable(init, target);
  return () =>
    decodedTogether(targets, quantizes).flatMap((some) =>
      scope(() =>
        start.pairs(some.map(decodedModule), init).map(({ a, b, less = null }, i) => {
          const { linear } = some[i] as PairTarget;
          const copies = ({ a, b }: LowRankPair): LowRankPair => ({
            a: ownCopy(a, linear),
            b: ownCopy(b, linear),
          });
          return { ...copies({ a, b }), fromWeight, less: less === null ? null : copies(less) };
        }),
      ),
    );
}

/** Elements of weights in blocks whose values are in memory at a time. */
const kDecodedElements = 1 << 23;

/** The targets in groups, one of all where no weight is in blocks or is to be. */
function decodedTogether(targets: readonly PairTarget[], quantizes: boolean): PairTarget[][] {
  const groups: PairTarget[][] = [[]];
  let elements = 0;
  for (const target of targets) {
    const { weight } = target.linear;
    if (quantizes || weight.encoding !== null) elements += weight.size;
    if (elements > kDecodedElements && (groups.at(-1) as PairTarget[]).length > 0) {
      groups.push([]);
      elements = weight.size;
    }
    (groups.at(-1) as PairTarget[]).push(target);
  }
  return groups;
}

/** A copy in the dtype of the linear's masters; a view would keep all of the larger tensor in memory. */
function ownCopy(tensor: Tensor, { weight }: Linear): Tensor {
  const dtype = masterDType(weight.dtype);
  const own = zeros(tensor.shape, { dtype, device: weight.device });
  copy_(own, tensor.to(dtype));
  return own;
}

function pairsOfFunction(init: StartFunction, targets: readonly PairTarget[]) {
  return () => {
    const found: unknown = init(targets.map(decodedModule));
    if (found instanceof Promise) {
      // The promise is never awaited, so its rejection is ignored.
      found.catch(() => {});
      throw new ArgumentError(
        'initLoraWeights: the function must return the pairs, not a promise of them; await what it needs before',
      );
    }
    if (!Array.isArray(found) || found.length !== targets.length) {
      const got = Array.isArray(found) ? `a list of ${found.length}` : shown(found);
      throw new ArgumentError(
        `initLoraWeights: the function must return a list of ${targets.length} pairs, one a module, got ${got}`,
      );
    }
    return targets.map((target, i) => ownPair(target, found[i]));
  };
}

/** A pair returned by a start function, checked and copied. */
function ownPair(target: PairTarget, found: unknown): MadePair {
  const { name, r, linear } = target;
  const { inFeatures, outFeatures } = linear;
  const given = (typeof found === 'object' ? found : null) as Partial<InitialPair> | null;
  if (given === null) refuse(name, `the function must return a pair { a, b }, got ${shown(found)}`);
  const { fromWeight = false } = given;
  if (typeof fromWeight !== 'boolean')
    refuse(name, `fromWeight must be true or false, got ${shown(fromWeight)}`);
  const copy = (key: 'a' | 'b', shape: [number, number], wanted: string): Tensor => {
    const tensor: unknown = given[key];
    if (!(tensor instanceof Tensor)) refuse(name, `${key} must be a tensor, got ${shown(tensor)}`);
    const { device } = linear.weight;
    const fits = tensor.shape.join() === shape.join();
    if (!fits) refuse(name, `${key} must be ${wanted}=(${shape}), got (${tensor.shape})`);
    if (!/^b?f\d+$/.test(tensor.dtype))
      refuse(name, `${key} must hold floats, got ${tensor.dtype}`);
    if (tensor.device !== device) refuse(name, `${key} must be on ${device}, got ${tensor.device}`);
    return ownCopy(tensor, linear);
  };
  const a = copy('a', [r, inFeatures], '(r,in)');
  return { a, b: copy('b', [outFeatures, r], '(out,r)'), fromWeight, less: null };
}

function refuse(name: string, what: string): never {
  throw new ArgumentError(`initLoraWeights: ${name}: ${what}`);
}

/** A module as a start sees it, with the values of a weight in blocks. */
export function decodedModule(target: PairTarget): StartModule {
  const { weight } = target.linear;
  return {
    ...startModule(target),
    weight: weight.encoding === null ? weight : weight.to(weight.dtype),
  };
}

/** A module with its weight as it stands in memory. */
export function startModule({
  name,
  r,
  alpha,
  scale,
  linear,
  seed,
  calibrated,
}: PairTarget): StartModule {
  const { inFeatures, outFeatures, weight } = linear;
  const seedFor = (purpose: string): number =>
    createHash('sha256').update(`${seed}/${name}/${purpose}`).digest().readUIntBE(0, 6);
  const { statistics = {}, settings = {}, inputOf = name } = calibrated ?? {};
  return {
    ...{ name, inFeatures, outFeatures, weight, r, alpha, scale, seed: seedFor },
    ...{ statistics, settings, inputOf },
  };
}

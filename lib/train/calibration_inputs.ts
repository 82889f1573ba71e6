/**
 * Calibration by the inputs of linear modules, read once for those that share an input: their second moments (CorDA), or the inputs
 * themselves, micro-batch by micro-batch (EVA).
 */
import { withAbort } from '../abort.ts';
import type { Calibration } from '../adapters/calibration.ts';
import type {
  CovarianceCalibration,
  InputCalibration,
  InputCollector,
  Statistics,
} from '../adapters/methods/method.ts';
import { trace } from '../adapters/trace.ts';
import { ArgumentError, NativeError, UnsupportedError } from '../errors.ts';
import type { LinearAdapter } from '../nn/adapter_hook.ts';
import type { Linear } from '../nn/linear.ts';
import {
  abs,
  concat,
  div,
  equal,
  indexSelect,
  max,
  reshape,
  scaledGramAdd,
  slice,
  stack,
  where,
  zeros,
} from '../ops/index.ts';
import { computeOwned, scope, type Tensor, tensor, unscoped } from '../tensor.ts';
import {
  batchesOf,
  type CalibratedLinear,
  type Found,
  forward,
  inBatch,
  learntRows,
  ownCopies,
  type Pass,
  partsWithin,
  probe,
  type RealRows,
  realRows,
  reducedOf,
  type Side,
  sequencesOf,
  settle,
  statisticsIn,
  tensorsOf,
} from './calibration_pass.ts';

/** Hands the input of a linear module to a function, and adds nothing to its output. */
class InputProbe implements LinearAdapter {
  constructor(readonly observe: (x: Tensor) => void) {}

  update(): null {
    return null;
  }
}

type Observers = ReadonlyMap<Linear, (x: Tensor) => void>;

/** Runs a forward in which each of the modules hands its input (rows,in) to a function. */
function observed(observers: Observers, run: () => void): void {
  for (const [linear, observe] of observers) linear.adapter = new InputProbe(observe);
  try {
    run();
  } finally {
    for (const linear of observers.keys()) linear.adapter = null;
  }
}

/** Thrown out of a forward whose rest is not needed. */
const kAllSeen = new Error('all modules that are observed have run');

/** {@link observed} for modules that each run once in a forward; it ends behind the last of them. */
function observedToTheLast(observers: Observers, run: () => void): void {
  let left = observers.size;
  const counted = Array.from(observers, ([linear, observe]): [Linear, (x: Tensor) => void] => [
    linear,
    (x) => {
      observe(x);
      if (--left === 0) throw kAllSeen;
    },
  ]);
  try {
    observed(new Map(counted), run);
  } catch (error) {
    if (error !== kAllSeen) throw error;
  }
}

/** Modules with the same input, which is read from the first of them, and the texts whose rows it has. */
interface Group {
  readonly first: CalibratedLinear;
  readonly modules: CalibratedLinear[];
  readonly side: Side;
}

/**
 * The modules in groups that read the same tensor in a forward, in their order.
 * @throws UnsupportedError for a module that does not read one row for each token or text, once in a forward
 */
function groupsOf({ model, modules }: Pass): Group[] {
  const inputs = new Map<Tensor, Group>();
  const seen = new Set<CalibratedLinear>();
  const { sides, run } = probe(model);
  const refuse = ({ name }: CalibratedLinear, what: string): never => {
    throw new UnsupportedError(
      `calibrate: ${name} ${what} in a forward of this ${model.modelType} model; exclude it with excludeModules`,
    );
  };
  const observers = modules.map((module): [Linear, (x: Tensor) => void] => [
    module.linear,
    (x) => {
      if (seen.has(module)) refuse(module, 'is run several times');
      seen.add(module);
      const side = sides.get(x.size / module.inFeatures);
      if (side === undefined) return refuse(module, 'reads other rows than those of the tokens');
      const group = inputs.get(x);
      if (group === undefined) inputs.set(x, { first: module, modules: [module], side });
      else group.modules.push(module);
    },
  ]);
  observed(new Map(observers), run);
  const missing = modules.find((module) => !seen.has(module));
  if (missing !== undefined) refuse(missing, 'is not run');
  const order = new Map(modules.map((module, i) => [module, i]));
  const at = ({ first }: Group): number => order.get(first) as number;
  return [...inputs.values()].sort((a, b) => at(a) - at(b));
}

/** Calibrates by the inputs of the modules. @returns what a {@link Calibration} keeps */
export async function byInputs(
  pass: Pass,
  calibration: CovarianceCalibration | InputCalibration,
): Promise<Found> {
  const groups = groupsOf(pass);
  const inputOf = new Map(
    groups.flatMap(({ first, modules }) => modules.map(({ name }) => [name, first.name] as const)),
  );
  const statistics =
    calibration.reads === 'covariance'
      ? await byCovariances(pass, groups, calibration)
      : await byCollector(
          pass,
          groups,
          calibration.collector(groups.map((group) => group.modules)),
        );
  return { statistics, inputOf };
}

async function byCovariances(
  pass: Pass,
  groups: readonly Group[],
  { reduce }: CovarianceCalibration,
): Promise<Map<string, Statistics>> {
  const sizeOf = ({ first }: Group): number => 8 * first.inFeatures ** 2;
  const parts = partsWithin(groups, sizeOf, pass.maxBytes);
  const { tensors = {}, counts = {} } = pass.state.found ?? {};
  const result = statisticsIn(tensors);
  // The part of a calibration that was cut off, and what was read for it.
  const { part: begun = 0, batch: read = 0, sequences: counted = 0 } = counts;
  for (const [at, part] of parts.entries()) {
    if (at < begun) continue;
    const isCut = at === begun && read > 0;
    const sums = part.map(({ first: { inFeatures, weight } }, i) =>
      isCut
        ? (tensors[`sum|${i}`] as Tensor)
        : unscoped(() => zeros([inFeatures, inFeatures], { dtype: 'f64', device: weight.device })),
    );
    let [batch, sequences] = isCut ? [read, counted] : [0, 0];
    try {
      for await (const micro of batchesOf(pass, batch)) {
        const rows = new Map(
          [...new Set(part.map(({ side }) => side))].map((side) => {
            const real = realRows(micro, side);
            // Once for all modules: while JavaScript makes it, no signal is heard.
            return [side, { ...real, sequences: sequencesOf(real) }];
          }),
        );
        const observers = part.map(({ first, side }, i): [Linear, (x: Tensor) => void] => {
          const own = rows.get(side) as SequenceRows;
          const add = (x: Tensor): void => addRows(sums[i] as Tensor, x, own);
          return [first.linear, (x) => scope(() => add(x))];
        });
        await inBatch(batch, async () => {
          observed(new Map(observers), () => forward(pass.model, micro, pass.abort));
          await refuseNotFinite(part, sums);
          await settle(pass.abort);
        });
        sequences += realRows(micro, 'source').lengths.length;
        batch++;
        pass.onProgress(at * pass.count + batch, parts.length * pass.count);
        await pass.state.after(() => ({
          tensors: {
            ...tensorsOf(result),
            ...Object.fromEntries(sums.map((sum, i) => [`sum|${i}`, sum])),
          },
          counts: { part: at, batch, sequences },
        }));
      }
      await refuseZero(part, sums);
      const sources = part.flatMap((group, i) =>
        group.modules.map((module) => ({ module, source: sums[i] as Tensor })),
      );
      const reduced = await reducedOf(
        sources,
        (of, moments) => reduce(of, moments, sequences),
        pass.abort,
      );
      for (const [name, own] of reduced) result.set(name, own);
    } finally {
      for (const sum of sums) sum.dispose();
    }
  }
  return result;
}

/** The traces of sums of second moments, which are not finite where an input was not. */
async function tracesOf(sums: readonly Tensor[]): Promise<Float64Array> {
  const traces = computeOwned(() => stack(sums.map(trace)));
  try {
    return (await traces.data()) as Float64Array;
  } finally {
    traces.dispose();
  }
}

/** Refuses inputs that are not finite. @throws NativeError (`ERR_NOT_FINITE`) naming the first module that reads some */
async function refuseNotFinite(part: readonly Group[], sums: readonly Tensor[]): Promise<void> {
  const at = (await tracesOf(sums)).findIndex((value) => !Number.isFinite(value));
  if (at < 0) return;
  throw new NativeError(`the inputs of ${part[at]?.first.name}`, { code: 'ERR_NOT_FINITE' });
}

/** Refuses modules whose inputs are all 0, of which there is no covariance. @throws ArgumentError */
async function refuseZero(part: readonly Group[], sums: readonly Tensor[]): Promise<void> {
  const at = (await tracesOf(sums)).indexOf(0);
  if (at < 0) return;
  throw new ArgumentError(
    `calibrate: ${part[at]?.first.name}: all of its inputs are 0, so that there is no covariance; exclude it with excludeModules`,
  );
}

/** Real rows, with the sequence of each. */
type SequenceRows = RealRows & { readonly sequences: Int32Array };

/** Adds the second moments of the real rows, each divided by the absolute value of the largest element of its sequence. */
function addRows(sum: Tensor, x: Tensor, { rows, lengths, sequences }: SequenceRows): void {
  const all = reshape(x, [-1, x.shape.at(-1) as number]);
  const real = rows === null ? all : indexSelect(all, tensor(rows));
  const highest = max(real, { axis: 1 }).to('f32');
  let start = 0;
  const scales = lengths.map((length) => {
    const largest = max(slice(highest, 0, { start, stop: start + length }));
    start += length;
    return reshape(largest, [1]);
  });
  // A sequence whose largest element is 0 stays as it is.
  const divisors = concat(scales);
  const scale = div(1, where(equal(divisors, 0), 1, abs(divisors))); // (B)
  scaledGramAdd(sum, real, indexSelect(scale, tensor(sequences)));
}

async function byCollector(
  pass: Pass,
  groups: readonly Group[],
  collector: InputCollector,
): Promise<Map<string, Statistics>> {
  const wanting = (): number[] =>
    Array.from(groups.keys()).filter((group) => collector.wants(group));
  try {
    const { found } = pass.state;
    if (found !== null) collector.restore(found);
    // Micro-batches of this round over the data, and whether one taught some group anything.
    let batch = found?.counts.batch ?? 0;
    let hasLearnt = found?.counts.hasLearnt === 1;
    while (wanting().length > 0) {
      for await (const micro of batchesOf(pass, batch)) {
        const wanted = wanting();
        if (wanted.length === 0) break;
        const rows = new Map<Side, Int32Array>();
        for (const group of wanted) {
          const { side } = groups[group] as Group;
          if (!rows.has(side)) rows.set(side, learntRows(pass.model, micro, side));
        }
        const learning = wanted.filter(
          (group) => (rows.get((groups[group] as Group).side)?.length ?? 0) > 0,
        );
        if (learning.length > 0) {
          const observers = learning.map((group): [Linear, (x: Tensor) => void] => {
            const { first, side } = groups[group] as Group;
            const own = rows.get(side) as Int32Array;
            const learnt = (x: Tensor) => computeOwned(() => indexSelect(x, tensor(own)));
            return [first.linear, (x) => collector.add(group, learnt(x))];
          });
          await inBatch(batch, async () => {
            observedToTheLast(new Map(observers), () => forward(pass.model, micro, pass.abort));
          });
        }
        hasLearnt = await inBatch(batch, async () => {
          const learnt = await withAbort(pass.abort, () => collector.endBatch());
          await settle(pass.abort);
          return learnt || hasLearnt;
        });
        batch++;
        pass.onProgress(groups.length - wanting().length, groups.length);
        await pass.state.after(() => {
          const { tensors, counts } = collector.reached();
          return { tensors, counts: { ...counts, batch, hasLearnt: Number(hasLearnt) } };
        });
      }
      if (!hasLearnt) {
        const { name } = (groups[wanting()[0] as number] as Group).first;
        throw new ArgumentError(
          `calibrate: no micro-batch has as many supervised tokens as components are computed (rho times the rank) for ${name}; make micro-batches larger, or the rank smaller`,
        );
      }
      [batch, hasLearnt] = [0, false];
    }
    const results = computeOwned(() => collector.results().map(ownCopies));
    await settle(pass.abort);
    return new Map(groups.map(({ first }, i) => [first.name, results[i] as Statistics]));
  } finally {
    collector.dispose();
  }
}

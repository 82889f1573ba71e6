/**
 * Calibration: passes of the untouched base over the first micro-batches of the user's data, from which data-driven starts (EVA, CorDA,
 * LoRA-GA) are computed. Padding is left out of everything. There are two machines: one reads the inputs of linear modules, once for
 * those that share an input, the other the gradients of their weights. Sums that do not fit into `maxBytes` together are made in
 * several passes, a part of the modules each, so that not all of them exist at once.
 */
import { existsSync } from 'node:fs';
import { checkNoAdapters, freezeBase } from '../adapters/attach.ts';
import { Calibration, type CalibrationFacts } from '../adapters/calibration.ts';
import { type AdapterConfigInput, adapterTargets } from '../adapters/make_adapter.ts';
import type {
  CovarianceCalibration,
  GradientCalibration,
  InputCalibration,
  InputCollector,
  StartCalibration,
  StartModule,
  Statistics,
} from '../adapters/methods/method.ts';
import { startNamed } from '../adapters/methods/registry.ts';
import { startModule } from '../adapters/starts.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { BatchSource } from '../data/batch_source.ts';
import type { Batch } from '../data/collate.ts';
import { ArgumentError, UnsupportedError } from '../errors.ts';
import { selectRows } from '../losses/positions.ts';
import { baseDigest } from '../models/base_digest.ts';
import { useModel } from '../models/in_use.ts';
import { CausalLM, type Model } from '../models/index.ts';
import type { LinearAdapter } from '../nn/adapter_hook.ts';
import type { Linear } from '../nn/linear.ts';
import {
  abs,
  concat,
  copy_,
  div,
  equal,
  gramAdd,
  indexSelect,
  max,
  mul,
  reshape,
  slice,
  where,
  zeros,
} from '../ops/index.ts';
import { type CallTable, checkCall, kCall, wholeNumber, withMethods } from '../options/call.ts';
import { synchronize } from '../runtime.ts';
import { shown } from '../shown.ts';
import { yieldToEventLoop } from '../tasks/event_loop.ts';
import { taskOf } from '../tasks/list.ts';
import { computeOwned, noGrad, scope, type Tensor, tensor, unscoped } from '../tensor.ts';
import { resolveOptions } from './options.ts';

/** Options of {@link calibrate}. */
export interface CalibrateOptions {
  /** The data; those of the run, as a rule. The first micro-batches of epoch 0 are read. */
  data: BatchSource<unknown>;
  /**
   * Number of micro-batches (default 32, or all of an epoch if it has fewer). CorDA and LoRA-GA read each once for every pass, EVA goes
   * over them until its components stand still.
   */
  batches?: number;
  /**
   * Path of the file that keeps the result: read where it exists, and refused if it is another calibration; written otherwise. Default:
   * none is kept.
   */
  file?: string;
  /** Largest size in bytes of the sums that are kept at a time (default 2^31); what does not fit takes further passes. */
  maxBytes?: number;
  /** Settings of the start in the place of its defaults, by name: EVA's `rho` (2) and `tau` (0.99). Default: none. */
  settings?: Readonly<Record<string, number>>;
  /** Seed of the searches for singular vectors (default 42). */
  seed?: number;
  /** Called with the work that is done and all of it: micro-batches of all passes, for EVA groups of modules that stand still. */
  onProgress?: (done: number, total: number) => void;
  /** Stops the calibration, whose promise is then rejected with the signal's reason. */
  signal?: AbortSignal;
}

const kTable: CallTable<CalibrateOptions> = {
  data: withMethods('a source of micro-batches', 'batches', 'batchCount'),
  batches: wholeNumber({ least: 1 }),
  file: kCall.path,
  maxBytes: wholeNumber({ least: 1 }),
  settings: kCall.object,
  seed: wholeNumber({ least: 0 }),
  onProgress: kCall.function,
  signal: kCall.signal,
};

const kBatches = 32;
const kMaxBytes = 2 ** 31;
/** Number of modules whose statistics are reduced at once: enough for all threads. */
const kReduced = 16;

/** A pass over the data: what is read, how much of it, and how the caller hears of it. */
interface Pass {
  readonly model: Model;
  readonly modules: readonly CalibratedLinear[];
  /** The micro-batches from the first one on. */
  batches(): AsyncIterable<Batch> | Iterable<Batch>;
  readonly count: number;
  readonly maxBytes: number;
  readonly onProgress: (done: number, total: number) => void;
  readonly signal: AbortSignal | undefined;
}

/** A module to be calibrated. */
interface CalibratedLinear extends StartModule {
  readonly linear: Linear;
}

/** Statistics by module, the module of a group with the same input that has them, and the number of micro-batches that were read. */
interface Found {
  readonly statistics: ReadonlyMap<string, Statistics>;
  readonly inputOf: ReadonlyMap<string, string>;
  readonly batches: number;
}

/**
 * Computes what a data-driven start needs. The model has no adapter yet; its weights are frozen, as AdapterModel.create() does it.
 * @param config the adapter's configuration, whose `initLoraWeights` (or `method`) names the start
 * @example
 * const method = 'corda';
 * const calibration = await calibrate(model, { method, r: 16 }, { data });
 * const tuned = await AdapterModel.create(model, { method, r: 16 }, { calibration });
 * @returns the calibration, for the option `calibration` of AdapterModel.create(); the caller disposes of it after that
 * @throws ArgumentError for a start that reads no data, data without a supervised token, ranks that are too large for it, or a file with
 *   another calibration; FormatError for a file that is damaged; UnsupportedError for a kind of model that the start is not for
 */
export async function calibrate(
  model: Model,
  config: AdapterConfigInput,
  options: CalibrateOptions,
): Promise<Calibration> {
  checkNoAdapters(model);
  checkCall('calibrate', options, kTable);
  const { data, file, seed, signal, maxBytes = kMaxBytes, onProgress = () => {} } = options;
  const { config: settings, targets } = adapterTargets(model, config, seed);
  const { initLoraWeights: init } = settings;
  const calibration = startNamed(init)?.calibration;
  if (calibration === undefined) {
    throw new ArgumentError(
      `calibrate: initLoraWeights ${shown(init)} is not computed from data; make the adapter without a calibration`,
    );
  }
  const available = await data.batchCount(0);
  if (available === 0) throw new ArgumentError('calibrate: the data has no micro-batch');
  const count = Math.min(options.batches ?? kBatches, available);
  const modules = targets.map((target) => ({ ...startModule(target), linear: target.linear }));
  const ranks = modules.map(({ name, r }) => [name, { r, inputOf: name }] as const);
  const facts: CalibrationFacts = {
    ...{ start: String(init), base: await baseDigest(model), data: data.fingerprint },
    ...{ batches: count, modules: Object.fromEntries(ranks) },
    settings: settingsOf(calibration, options.settings ?? {}),
  };
  if (file !== undefined && existsSync(file)) return readAgain(file, facts, model.device);
  const release = useModel(model);
  try {
    freezeBase(model);
    const source = data as BatchSource;
    const pass: Pass = {
      ...{ model, modules, count, maxBytes, onProgress, signal },
      batches: () => source.batches(0, 0),
    };
    const found =
      calibration.reads === 'gradient'
        ? await byGradients(pass, calibration)
        : await byInputs(pass, calibration, facts.settings);
    const result = resultOf(facts, found);
    if (file !== undefined) await result.save(file);
    return result;
  } finally {
    release();
  }
}

/** The settings of a start, those that are given in the place of the defaults. @throws ArgumentError for others than it has */
function settingsOf(
  calibration: StartCalibration,
  given: Readonly<Record<string, number>>,
): Record<string, number> {
  const defaults = calibration.reads === 'inputs' ? calibration.settings : {};
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(defaults, name)) {
      const known = Object.keys(defaults).join(', ') || 'none';
      throw new ArgumentError(`calibrate: the start has no setting "${name}"; known: ${known}`);
    }
    if (typeof value !== 'number' || !Number.isFinite(value)) {
      throw new ArgumentError(`calibrate: ${name} must be a finite number, got ${shown(value)}`);
    }
  }
  return { ...defaults, ...given };
}

/** The calibration of a file. @throws ArgumentError if it is another one than that which would be computed */
async function readAgain(
  file: string,
  facts: CalibrationFacts,
  device: string,
): Promise<Calibration> {
  const found = await Calibration.load(file, { device });
  const difference = found.difference(facts);
  if (difference === null) return found;
  found.dispose();
  throw new ArgumentError(
    `${file}: is a calibration that was made ${difference}; give another file, or remove it to calibrate again`,
  );
}

function resultOf(facts: CalibrationFacts, { statistics, inputOf }: Found): Calibration {
  const tensors: Record<string, Tensor> = {};
  for (const [module, own] of statistics) {
    for (const [name, value] of Object.entries(own))
      tensors[Calibration.keyOf(module, name)] = value;
  }
  const modules = Object.entries(facts.modules).map(
    ([name, { r }]) => [name, { r, inputOf: inputOf.get(name) ?? name }] as const,
  );
  return new Calibration({ ...facts, modules: Object.fromEntries(modules) }, tensors);
}

/** The micro-batches of one pass over the data. */
async function* batchesOf({ batches, count, signal }: Pass): AsyncGenerator<Batch> {
  let left = count;
  for await (const batch of batches()) {
    signal?.throwIfAborted();
    yield batch;
    if (--left === 0) return;
  }
}

/** Hands the input of a linear module to a function, and adds nothing to its output. */
class InputProbe implements LinearAdapter {
  constructor(readonly observe: (x: Tensor) => void) {}

  update(): null {
    return null;
  }
}

/** Runs a forward without recording, in which each of the modules hands its input (rows,in) to a function. */
function observed(
  model: Model,
  batch: Parameters<Model['forward']>[0],
  observers: ReadonlyMap<Linear, (x: Tensor) => void>,
): void {
  for (const [linear, observe] of observers) linear.adapter = new InputProbe(observe);
  try {
    // Rows that several sequences share must be seen for each of them.
    scope(() => {
      noGrad(() => model.forward(batch, { sharePrefixes: false }));
    });
  } finally {
    for (const linear of observers.keys()) linear.adapter = null;
  }
}

/** Modules with the same input, which is read from the first of them. */
interface Group {
  readonly first: CalibratedLinear;
  readonly modules: CalibratedLinear[];
}

/** The modules in groups that read the same tensor in a forward, in their order. */
function groupsOf({ model, modules }: Pass): Group[] {
  const inputs = new Map<Tensor, Group>();
  const observers = modules.map((module): [Linear, (x: Tensor) => void] => [
    module.linear,
    (x) => {
      const group = inputs.get(x);
      if (group === undefined) inputs.set(x, { first: module, modules: [module] });
      else group.modules.push(module);
    },
  ]);
  for (const batch of model.probeBatches(2)) observed(model, batch, new Map(observers));
  const order = new Map(modules.map((module, i) => [module, i]));
  const groups = [...inputs.values()];
  const seen = new Set(groups.flatMap((group) => group.modules));
  const missing = modules.find((module) => !seen.has(module));
  if (missing !== undefined) {
    throw new UnsupportedError(
      `calibrate: ${missing.name} is not run in a forward of this ${model.modelType} model; exclude it with excludeModules`,
    );
  }
  const at = ({ first }: Group): number => order.get(first) as number;
  return groups.sort((a, b) => at(a) - at(b));
}

async function byInputs(
  pass: Pass,
  calibration: CovarianceCalibration | InputCalibration,
  settings: CalibrationFacts['settings'],
): Promise<Found> {
  if (!(pass.model instanceof CausalLM)) {
    throw new UnsupportedError(
      `calibrate: starts from the inputs of modules are for causal language models, not for this ${pass.model.modelType} model; ` +
        'choose another initLoraWeights, such as pissa or lora_ga',
    );
  }
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
          calibration.collector(
            groups.map(({ modules }) => modules),
            settings,
          ),
        );
  return { statistics, inputOf, batches: pass.count };
}

/** Splits a list into consecutive parts whose sizes add up to no more than a limit, one entry each at least. */
function partsWithin<T>(
  entries: readonly T[],
  bytesOf: (entry: T) => number,
  limit: number,
): T[][] {
  const parts: T[][] = [];
  let room = 0;
  for (const entry of entries) {
    const bytes = bytesOf(entry);
    if (bytes > room) {
      parts.push([]);
      room = limit;
    }
    parts.at(-1)?.push(entry);
    room -= bytes;
  }
  return parts;
}

/** Reduces the statistics of modules, some at a time, to tensors of their own. */
async function reducedOf<S>(
  sources: readonly { readonly module: CalibratedLinear; readonly source: S }[],
  reduce: (modules: readonly StartModule[], sources: readonly S[]) => readonly Statistics[],
): Promise<Map<string, Statistics>> {
  const result = new Map<string, Statistics>();
  for (let first = 0; first < sources.length; first += kReduced) {
    const some = sources.slice(first, first + kReduced);
    const found = computeOwned(() =>
      reduce(
        some.map(({ module }) => module),
        some.map(({ source }) => source),
      ).map(ownCopies),
    );
    for (const [i, { module }] of some.entries()) result.set(module.name, found[i] as Statistics);
    await synchronize();
    await yieldToEventLoop();
  }
  return result;
}

/** Copies in f32, which keep nothing larger in memory as views would. */
function ownCopies(statistics: Statistics): Statistics {
  return Object.fromEntries(
    Object.entries(statistics).map(([name, value]) => {
      const own = zeros(value.shape, { device: value.device });
      copy_(own, value.to('f32'));
      return [name, own];
    }),
  );
}

async function byCovariances(
  pass: Pass,
  groups: readonly Group[],
  { reduce }: CovarianceCalibration,
): Promise<Map<string, Statistics>> {
  const sizeOf = ({ first }: Group): number => 8 * first.inFeatures ** 2;
  const parts = partsWithin(groups, sizeOf, pass.maxBytes);
  const result = new Map<string, Statistics>();
  let done = 0;
  for (const part of parts) {
    const sums = part.map(({ first: { inFeatures, weight } }) =>
      unscoped(() => zeros([inFeatures, inFeatures], { dtype: 'f64', device: weight.device })),
    );
    try {
      let sequences = 0;
      for await (const batch of batchesOf(pass)) {
        const rows = realRows(batch);
        const observers = part.map(({ first }, i): [Linear, (x: Tensor) => void] => [
          first.linear,
          (x) => scope(() => gramAdd(sums[i] as Tensor, scaledRows(x, rows))),
        ]);
        observed(pass.model, batch, new Map(observers));
        await synchronize();
        await yieldToEventLoop();
        sequences += rows.lengths.length;
        pass.onProgress(++done, parts.length * pass.count);
      }
      scope(() => {
        for (const sum of sums) copy_(sum, mul(sum, 1 / sequences));
      });
      await refuseZero(part, sums);
      const sources = part.flatMap((group, i) =>
        group.modules.map((module) => ({ module, source: sums[i] as Tensor })),
      );
      for (const [name, own] of await reducedOf(sources, reduce)) result.set(name, own);
    } finally {
      for (const sum of sums) sum.dispose();
    }
  }
  return result;
}

/** Refuses modules whose inputs are all 0, of which there is no covariance. @throws ArgumentError */
async function refuseZero(part: readonly Group[], sums: readonly Tensor[]): Promise<void> {
  const largest = scope(() => noGrad(() => sums.map((sum) => max(sum))));
  for (const [i, value] of largest.entries()) {
    const most = await value.item();
    value.dispose();
    if (most > 0) continue;
    throw new ArgumentError(
      `calibrate: ${part[i]?.first.name}: all of its inputs are 0 or not finite, so that there is no covariance; exclude it with excludeModules`,
    );
  }
}

/** The rows of a batch that are no padding, by sequence. */
interface RealRows {
  /** Indices of the rows; null: all. */
  readonly rows: Int32Array | null;
  /** Number of rows of each sequence, none of them 0. */
  readonly lengths: readonly number[];
}

function realRows({ cuSeqlens, lengths }: Batch): RealRows {
  const segments = Array.from({ length: cuSeqlens.length - 1 }, (_, b) => {
    const [begin, end] = [cuSeqlens[b] as number, cuSeqlens[b + 1] as number];
    return { begin, length: lengths === undefined ? end - begin : (lengths[b] as number) };
  }).filter(({ length }) => length > 0);
  const own = segments.map(({ length }) => length);
  if (lengths === undefined) return { rows: null, lengths: own };
  const rows = segments.flatMap(({ begin, length }) => Array.from({ length }, (_, t) => begin + t));
  return { rows: Int32Array.from(rows), lengths: own };
}

/** The real rows in f32, each divided by the absolute value of the largest element of its sequence. */
function scaledRows(x: Tensor, { rows, lengths }: RealRows): Tensor {
  const all = reshape(x, [-1, x.shape.at(-1) as number]);
  const real = (rows === null ? all : indexSelect(all, tensor(rows))).to('f32');
  const highest = max(real, { axis: 1 });
  let start = 0;
  const scales = lengths.map((length) => {
    const largest = max(slice(highest, 0, { start, stop: start + length }));
    start += length;
    return reshape(largest, [1]);
  });
  const sequence = tensor(Int32Array.from(lengths.flatMap((n, b) => new Array<number>(n).fill(b))));
  // A sequence whose largest element is 0 stays as it is.
  const divisors = concat(scales);
  const scale = div(1, where(equal(divisors, 0), 1, abs(divisors))); // (B)
  return mul(real, reshape(indexSelect(scale, sequence), [-1, 1]));
}

async function byCollector(
  pass: Pass,
  groups: readonly Group[],
  collector: InputCollector,
): Promise<Map<string, Statistics>> {
  const wanting = (): number[] =>
    Array.from(groups.keys()).filter((group) => collector.wants(group));
  try {
    while (wanting().length > 0) {
      let hasLearnt = false;
      for await (const batch of batchesOf(pass)) {
        const wanted = wanting();
        if (wanted.length === 0) break;
        const rows = supervisedRows(batch);
        if (rows.length > 0) {
          const observers = wanted.map((group): [Linear, (x: Tensor) => void] => [
            (groups[group] as Group).first.linear,
            (x) => scope(() => collector.add(group, indexSelect(x, tensor(rows)))),
          ]);
          observed(pass.model, batch, new Map(observers));
        }
        hasLearnt = (await collector.endBatch()) || hasLearnt;
        await synchronize();
        await yieldToEventLoop();
        pass.onProgress(groups.length - wanting().length, groups.length);
      }
      if (!hasLearnt) {
        throw new ArgumentError(
          'calibrate: no micro-batch has as many supervised tokens as components are computed (twice the rank); make micro-batches larger, or the rank smaller',
        );
      }
    }
    const results = collector.results();
    const found = groups.map(({ first }, i) => {
      const own = computeOwned(() => ownCopies(results[i] as Statistics));
      return [first.name, own] as const;
    });
    await synchronize();
    return new Map(found);
  } finally {
    collector.dispose();
  }
}

/** The rows whose own id is trained on, that is, predicted by the row before. */
function supervisedRows(batch: Batch): Int32Array {
  const { rows, regularizedRows } = selectRows(batch, 'label_aligned');
  return regularizedRows.map((index) => rows[index] as number);
}

async function byGradients(pass: Pass, calibration: GradientCalibration): Promise<Found> {
  const { modules, model } = pass;
  for (const module of modules) calibration.check?.(module);
  const inputOf = new Map(modules.map(({ name }) => [name, name]));
  const wide = model.dtype === 'f64' ? 8 : 4;
  const parts = partsWithin(modules, ({ weight }) => wide * weight.size, pass.maxBytes);
  const statistics = new Map<string, Statistics>();
  let done = 0;
  for (const part of parts) {
    try {
      const count = await addGradients(pass, part, () => {
        pass.onProgress(++done, parts.length * pass.count);
      });
      if (count === 0) {
        throw new ArgumentError(
          'calibrate: no micro-batch has a supervised token, so that there is no gradient; raise maxLength above the length of the prompts',
        );
      }
      const sources = part.map((module) => ({ module, source: module.weight }));
      const reduce = (some: readonly StartModule[], weights: readonly Tensor[]) =>
        calibration.reduce(
          some,
          weights.map((weight) => mul(weight.grad as Tensor, 1 / count)),
        );
      for (const [name, own] of await reducedOf(sources, reduce)) statistics.set(name, own);
    } finally {
      for (const { weight } of part) {
        weight.requiresGrad = false;
        weight.grad = null;
      }
    }
  }
  return { statistics, inputOf, batches: pass.count };
}

/** Adds the gradients of the micro-batches' mean losses for some weights. @returns the number of micro-batches that have a loss */
async function addGradients(
  pass: Pass,
  part: readonly CalibratedLinear[],
  onBatch: () => void,
): Promise<number> {
  const { model } = pass;
  const task = taskOf(model);
  const { regularizers } = resolveOptions({}, task.name);
  const settings = { terms: [], regularizers: { ...regularizers } };
  const loss = task.loss(untuned(model), settings);
  let count = 0;
  try {
    for await (const batch of batchesOf(pass)) {
      const micro = task.select(batch, settings.regularizers);
      if (micro.selected === null || micro.selected.rows.length > 0) {
        for (const { weight } of part) weight.requiresGrad = true;
        const totals = micro.counts;
        const rest = { teacher: null, weights: {}, at: { step: 0, totalSteps: 1 } };
        scope(() => {
          const student = loss.forward(micro);
          loss.compute({ micro, student, totals, ...rest }).loss?.backward();
        });
        for (const { weight } of part) weight.requiresGrad = false;
        count++;
      }
      await synchronize();
      await yieldToEventLoop();
      onBatch();
    }
    return count;
  } finally {
    loss.dispose();
  }
}

/** A model as a loss reads it, without anything that is tuned. */
function untuned(model: Model): TunedModel<Model> {
  const refuse = (): never => {
    throw new ArgumentError('calibrate: a model that is calibrated has no teacher');
  };
  return {
    ...{ model, kind: 'full', trainsHead: false, hasTeacher: false, teacherBytes: 0 },
    graphObstacle: null,
    parameters: () => [],
    ...{ collectGradients: () => {}, zeroGradients: () => {}, trainingPass: () => {} },
    ...{ afterStep: () => {}, state: () => ({}), restore: () => {}, identity: () => ({}) },
    ...{ checkForm: () => {}, withTeacher: refuse, savePretrained: refuse, dispose: () => {} },
  };
}

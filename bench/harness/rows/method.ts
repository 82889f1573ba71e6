/**
 * Costs of the methods, each beside what it is to be compared with, in turns in one process: a training step of a method over LoRA's of
 * the same rank, and the making of a start over the passes of its calibration alone. A start without a calibration is timed by itself.
 */
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { hasAlpha } from '../../../lib/adapters/config.ts';
import {
  type AdapterConfigInput,
  type AdapterMethodName,
  adapterTargets,
} from '../../../lib/adapters/create.ts';
import { LORA_TYPE, type StartCalibration } from '../../../lib/adapters/methods/method.ts';
import { METHOD_NAMES, METHODS, startNamed } from '../../../lib/adapters/methods/registry.ts';
import type { Batch } from '../../../lib/data/collate.ts';
import type { CausalLM } from '../../../lib/models/index.ts';
import { synchronize } from '../../../lib/runtime.ts';
import { type CalibrateOptions, calibrate } from '../../../lib/train/calibrate.ts';
import { addGradients } from '../../../lib/train/calibration_gradients.ts';
import { forward } from '../../../lib/train/calibration_pass.ts';
import { Trainer } from '../../../lib/train/trainer.ts';
import type { BatchSource } from '../../../lib/train/types.ts';
import { median, spread } from '../statistics.ts';
import { openSubject, type SubjectOptions } from '../subject.ts';
import type { RatioRow, StartRow, Workload } from '../types.ts';
import { workloadData } from '../workload_batches.ts';

/** The settings of a row by its name. */
type Rows = Readonly<Record<string, AdapterConfigInput>>;

/** The rank of a row, unless its settings have another. */
export const METHOD_RANK = 16;

/** Methods whose step is not LoRA's or PiSSA's, with settings under which a short run does what a long one does in most of its steps. */
const kOwnSettings: Readonly<Partial<Record<AdapterMethodName, AdapterConfigInput>>> = {
  adalora: { initR: METHOD_RANK, targetR: METHOD_RANK / 2 },
  // The directions are there from the second step on; before there is none, and the step is LoRA's.
  lora_dash: { dashWarmup: 1 },
};

/** Another name of a listed method, and one that has rows of its own. */
const kLeftOut: readonly string[] = ['lora', 'peanut', 'balora'];

const isDataDriven = (init: unknown): boolean => startNamed(init)?.calibration !== undefined;

/** Rows of steps: every method with an adapter but those of a start that is computed from data, which train as LoRA and PiSSA do. */
export const kMethodSteps: Rows = {
  ...Object.fromEntries(
    METHOD_NAMES.flatMap((name): [string, AdapterConfigInput][] => {
      const { adapter } = METHODS[name];
      if (adapter === null || kLeftOut.includes(name) || isDataDriven(adapter.initLoraWeights))
        return [];
      const method = name as AdapterMethodName;
      return [[`step-${name.replaceAll('_', '-')}`, { method, ...kOwnSettings[method] }]];
    }),
  ),
  // The gradient of A, which it leaves out, grows with the rank.
  'step-lora-fa-r128': { method: 'lora_fa', r: 128 },
};

/** Rows of starts: those that take more than random numbers. */
export const kMethodStarts: Rows = {
  'start-pissa': { method: 'pissa' },
  'start-olora': { method: 'olora' },
  'start-milora': { method: 'milora' },
  'start-lora-xs': { method: 'lora_xs' },
  'start-eva': { method: 'eva' },
  'start-corda': { method: 'corda' },
  'start-corda-kpm': { initLoraWeights: 'corda_kpm' },
  'start-lora-ga': { method: 'lora_ga' },
  'start-lora-ga-quick': { method: 'lora_ga' },
};

export const kMethodRows: Rows = { ...kMethodSteps, ...kMethodStarts };

export interface MethodRowInput extends SubjectOptions {
  readonly name: string;
  /** Number of measured steps in a turn of a row of steps. */
  readonly steps: number;
  readonly dataFile?: string | undefined;
}

const kTurns = 4;
const kStartTurns = 3;
const kWarmup = 2;
/** Micro-batches of a calibration, a quarter of its default: what a start costs once weighs four times as much. */
const kBatches = 8;
/** CorDA's row has the default: what it does once takes as long as three of its forwards. */
const kCordaBatches = 32;
const kWorkload: Workload = {
  ...{ label: 'methods', method: 'lora', rank: METHOD_RANK, batch: 4, length: 512 },
  ...{ accumulation: 1, data: 'random' },
};

/** The rows that a calibration reads in a bench row: text, as the components of random ids do not stand still. */
const kCalibrationWorkload: Workload = { ...kWorkload, batch: 8, data: 'gsm8k' };

/**
 * Settings of a row's calibration. EVA goes on until its components stand still, which with its default of 0.99 takes many rounds over
 * the micro-batches. The first ones, in which all modules take part and turn most, cost most.
 */
const kCalibrationSettings: Readonly<Record<string, CalibrateOptions['settings']>> = {
  'start-eva': { tau: 0.9 },
  'start-lora-ga-quick': { quick: true },
};

/** Measures a row of {@link kMethodRows}. */
export async function methodRow(input: MethodRowInput): Promise<RatioRow | StartRow> {
  const { model, sizes, notes } = await openSubject(input);
  const own = kMethodRows[input.name] as AdapterConfigInput;
  const trial = input.shape === 'tiny' && input.model === undefined;
  const rank = trial ? METHOD_RANK : (own.r ?? METHOD_RANK);
  const { peftType = LORA_TYPE } = (own.method && METHODS[own.method].adapter) ?? {};
  const config: AdapterConfigInput = {
    ...own,
    // AdaLoRA has other ranks than r.
    ...(own.initR === undefined && { r: rank }),
    ...(hasAlpha(peftType as string) && { loraAlpha: rank }),
  };
  const { initLoraWeights, method } = config;
  const init = initLoraWeights ?? METHODS[method as AdapterMethodName].adapter?.initLoraWeights;
  const isStep = Object.hasOwn(kMethodSteps, input.name);
  const calibration = isStep ? undefined : startNamed(init ?? true)?.calibration;
  const full = calibration === undefined ? kWorkload : kCalibrationWorkload;
  const workload: Workload = trial ? { ...kWorkload, length: 32 } : full;
  const count = input.name === 'start-corda' && !trial ? kCordaBatches : kBatches;
  const data = await workloadData(workload, {
    ...{ vocabulary: sizes.v, count },
    ...(full.data === 'gsm8k' && { model: input.model, dataFile: input.dataFile }),
  });
  const { source } = data;
  try {
    if (isStep) return await stepOver(model, config, input, source);
    if (calibration === undefined) return await plainStart(model, config, input, notes);
    const row = await calibratedStart(model, config, input, { calibration, source, count });
    return { ...row, meaning: [row.meaning, ...data.notes].join('; ') };
  } finally {
    await data.close();
    model.dispose();
  }
}

const milliseconds = (seconds: number): string => `${(1e3 * seconds).toFixed(0)} ms`;

/** A training step over LoRA's, both adapters on one base. */
async function stepOver(
  model: CausalLM,
  config: AdapterConfigInput,
  { name, dtype, steps }: MethodRowInput,
  data: BatchSource,
): Promise<RatioRow> {
  const { r: rank = METHOD_RANK } = config;
  const tuned = await AdapterModel.create(model, { r: rank, loraAlpha: rank }, { name: 'lora' });
  // AdaLoRA's ranks are chosen in one run, so that each turn needs a fresh adapter of it.
  const isFresh = config.initR !== undefined;
  if (!isFresh) await tuned.addAdapter('other', config);
  const seconds = async (adapter: string): Promise<number> => {
    tuned.setAdapter(adapter);
    const maxSteps = kWarmup + steps;
    const found: number[] = [];
    for await (const event of new Trainer({ tuned, data, maxSteps }).run()) {
      if (event.type !== 'step') continue;
      const { step, tokens, tokensPerSecond } = event.record;
      if (step > kWarmup) found.push(tokens / tokensPerSecond);
    }
    return median(found);
  };
  const pairs: { own: number; lora: number }[] = [];
  for (let turn = 0; turn < kTurns; turn++) {
    if (isFresh) await tuned.addAdapter('other', config);
    pairs.push({ lora: await seconds('lora'), own: await seconds('other') });
    tuned.setAdapter('lora');
    if (isFresh) tuned.deleteAdapter('other');
  }
  tuned.dispose();
  const [own, lora] = [median(pairs.map((pair) => pair.own)), median(pairs.map((p) => p.lora))];
  return {
    ...{ kind: 'ratio', name, dtype, value: median(pairs.map((pair) => pair.own / pair.lora)) },
    meaning: `time of a training step over LoRA's, r ${rank}, 4 x 512: ${milliseconds(own)} over ${milliseconds(lora)}, in ${kTurns} turns`,
  };
}

async function timed(body: () => Promise<unknown>): Promise<number> {
  await synchronize();
  const begun = performance.now();
  await body();
  await synchronize();
  return (performance.now() - begun) / 1000;
}

async function plainStart(
  model: CausalLM,
  config: AdapterConfigInput,
  { name, dtype }: MethodRowInput,
  notes: readonly string[],
): Promise<StartRow> {
  const seconds: number[] = [];
  for (let turn = 0; turn < kStartTurns; turn++) {
    let tuned: AdapterModel | undefined;
    seconds.push(
      await timed(async () => {
        tuned = await AdapterModel.create(model, config);
      }),
    );
    tuned?.dispose();
  }
  const meaning = `AdapterModel.create() at r ${METHOD_RANK}`;
  return { kind: 'start', name, dtype, seconds: spread(seconds), notes, meaning };
}

/** The gradients of all weights, summed over the micro-batches as a calibration does it. */
async function gradients(
  model: CausalLM,
  config: AdapterConfigInput,
  data: BatchSource,
): Promise<void> {
  const weights = adapterTargets(model, config).targets.map(({ linear }) => linear.weight);
  const pass = { model, batches: (start: number) => data.batches(0, start), count: kBatches };
  await addGradients(pass, weights, { batch: 0, count: 0 }, async () => {});
  for (const weight of weights) weight.grad = null;
}

async function firstOf(source: BatchSource): Promise<Batch | undefined> {
  for await (const batch of source.batches(0, 0)) return batch;
  return undefined;
}

/** The making of a start over the passes that its calibration makes, which the same micro-batches are run for. */
async function calibratedStart(
  model: CausalLM,
  config: AdapterConfigInput,
  { name, dtype }: MethodRowInput,
  {
    calibration,
    source,
    count,
  }: { calibration: StartCalibration; source: BatchSource; count: number },
): Promise<RatioRow> {
  const read: Batch[] = [];
  const data: BatchSource = {
    fingerprint: source.fingerprint,
    batchCount: (epoch) => source.batchCount(epoch),
    async *batches(epoch, start) {
      for await (const batch of source.batches(epoch, start)) {
        read.push(batch);
        yield batch;
      }
    },
  };
  const settings = kCalibrationSettings[name];
  const options: CalibrateOptions = { data, batches: count, ...(settings && { settings }) };
  const start = async (): Promise<void> => {
    const made = await calibrate(model, config, options);
    const tuned = await AdapterModel.create(model, config, { calibration: made });
    await synchronize();
    tuned.dispose();
    made.dispose();
  };
  const passes = async (): Promise<void> => {
    if (calibration.reads === 'gradient') return gradients(model, config, source);
    for (const batch of read) {
      forward(model, batch);
      await synchronize();
    }
  };
  forward(model, (await firstOf(source)) as Batch); // lays out the weights
  const [own, alone] = [await timed(start), await timed(passes)];
  const of =
    calibration.reads === 'gradient' ? 'the gradients' : `as many whole forwards, ${read.length},`;
  return {
    ...{ kind: 'ratio', name, dtype, value: own / alone },
    meaning: `time of calibration and start over that of ${of} alone, r ${METHOD_RANK}, ${count} micro-batches: ${own.toFixed(2)} over ${alone.toFixed(2)} s`,
  };
}

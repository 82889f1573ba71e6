/**
 * The options of a training run, one entry each: see lib/options/option.ts. Those of the loss's terms stand with the terms
 * (lib/losses/terms), those of the adapter in lib/adapters/lora_options.ts.
 */
import { z } from 'zod';
import { kMetricNames } from '../data/glue.ts';
import { RAMP_TYPES, SCHEDULER_NAMES, type SchedulerOptions } from '../optim/schedulers.ts';
import {
  choice,
  choiceOrNull,
  json,
  number,
  onOff,
  settings,
  size,
  text,
  whole,
} from '../options/kinds.ts';
import { type Check, group, type InputOf } from '../options/option.ts';

/** Optimisers by name. */
export const OPTIMIZER_NAMES = ['adamw', 'adafactor', 'sgd'] as const;
/** One of {@link OPTIMIZER_NAMES}. */
export type OptimizerName = (typeof OPTIMIZER_NAMES)[number];

const share = z.number().optional();
const curve = z.enum(RAMP_TYPES).optional();
/** Which of them a schedule needs is the schedule's business. */
const schedulerFields = z.strictObject({
  ...{ numCycles: share, lrEnd: share, power: share, minLr: share, minLrRate: share },
  ...{ timescale: share, numDecaySteps: share, numStableSteps: share, minLrRatio: share },
  ...{ warmupType: curve, decayType: curve },
} satisfies Record<keyof SchedulerOptions, z.ZodType>);

/** Optimisation, in transformers' names. */
export const optimizationOptions = group('Optimization', {
  /** Optimiser. Default `adamw`. */
  optim: choice({
    choices: OPTIMIZER_NAMES,
    default: 'adamw',
    help: 'optimizer',
    aliases: ['optimizer', 'optimiser'],
  }),
  /** Highest learning rate. Default 2e-5. */
  learningRate: number({
    least: 0,
    default: 2e-5,
    help: 'highest learning rate',
    aliases: ['lr', 'rate', 'max-lr', 'peak-lr'],
  }),
  /** Schedule of the learning rate, under transformers' names. Default `cosine`. */
  lrSchedulerType: choice({
    choices: SCHEDULER_NAMES,
    default: 'cosine',
    help: 'schedule of the learning rate',
    aliases: ['lr-scheduler', 'scheduler', 'lr-schedule'],
  }),
  /** Settings that the schedule asks for, see {@link SchedulerOptions}. Default none. */
  lrSchedulerKwargs: settings<SchedulerOptions>({
    fields: schedulerFields as never,
    of: 'options of the schedule',
    default: {},
    help: 'what the schedule asks for, such as {"min_lr_rate": 0.1} for cosine_with_min_lr',
    aliases: ['scheduler-kwargs'],
  }),
  /** Steps of the warm-up; below 1 a share of the run, rounded up. Default 0.03. */
  warmupSteps: number({
    least: 0,
    default: 0.03,
    help: 'warm-up; below 1: a share of the run',
    aliases: ['warmup-ratio', 'warmup', 'num-warmup-steps'],
  }),
  /** Decoupled weight decay. Default 0. */
  weightDecay: number({ least: 0, default: 0, help: 'decoupled weight decay', aliases: ['wd'] }),
  /** Decay of AdamW's first moment. Default 0.9. */
  adamBeta1: number({
    least: 0,
    below: 1,
    default: 0.9,
    help: 'decay of the first moment',
    aliases: ['beta1'],
  }),
  /** Decay of AdamW's second moment. Default 0.999. */
  adamBeta2: number({
    least: 0,
    below: 1,
    default: 0.999,
    help: 'decay of the second moment',
    aliases: ['beta2'],
  }),
  /** Number that is added to the root of AdamW's second moment. Default 1e-8. */
  adamEpsilon: number({
    least: 0,
    default: 1e-8,
    help: 'added to the root of the second moment',
    aliases: ['eps', 'epsilon', 'adam-eps'],
  }),
  /** Momentum of SGD; the other optimisers have none. Default 0. */
  momentum: number({
    least: 0,
    below: 1,
    default: 0,
    help: 'momentum of sgd',
    aliases: ['sgd-momentum'],
  }),
  /** LoRA+: learning rate of B over that of A. Default 1. */
  loraplusLrRatio: number({
    least: 0,
    above: true,
    default: 1,
    help: 'LoRA+: learning rate of B over that of A',
    aliases: ['loraplus-ratio', 'lora-plus-lr-ratio'],
  }),
  /** Norm to which gradients are clipped; 0 switches clipping off. Default 1. */
  maxGradNorm: number({
    least: 0,
    default: 1,
    help: 'gradients are clipped to this norm; 0: not',
    aliases: ['grad-clip', 'clip', 'clip-grad-norm', 'gradient-clipping', 'max-norm'],
  }),
  /** Passes over the data. Default 1. */
  numTrainEpochs: number({
    least: 0,
    above: true,
    default: 1,
    help: 'passes over the data',
    aliases: ['epochs', 'num-epochs', 'epoch'],
  }),
  /** Steps of the run; they win over `numTrainEpochs`. Default, and null: the epochs decide. */
  maxSteps: whole({
    least: 1,
    default: null,
    help: 'steps; wins over the epochs',
    aliases: ['steps', 'num-steps', 'max-train-steps', 'iters'],
  }),
  /** Micro-batches of a step. Default 1. */
  gradientAccumulationSteps: whole({
    least: 1,
    default: 1,
    help: 'micro-batches of a step',
    aliases: ['grad-accum', 'grad-acc', 'gradient-accumulation', 'accumulation-steps'],
  }),
});

const kOutputGroup = 'Output';

/** Where a run is written, and how often; without `output` nothing is written at all. */
export const outputOptions = group(kOutputGroup, {
  /** Folder of the adapter and run/; must be empty or absent unless `overwrite` or `resume` is set. */
  output: text({
    placeholder: 'folder',
    default: null,
    help: 'where the adapter and run/ are written',
    identity: false,
    aliases: ['output-dir', 'out', 'save-dir', 'output-folder'],
  }),
  /** Replace an earlier run in the output folder. Default false. */
  overwrite: onOff({
    default: false,
    help: 'replace an earlier run in the output folder',
    identity: false,
    aliases: ['overwrite-output-dir', 'force'],
  }),
  /** Continue from the last good checkpoint of `output`, bit for bit. Default false. */
  resume: onOff({
    default: false,
    help: 'go on from the last checkpoint in the output folder',
    identity: false,
    aliases: ['resume-from-checkpoint', 'continue'],
  }),
  /** Steps between checkpoints; 0: by time only. Default 0. */
  saveSteps: whole({
    least: 0,
    default: 0,
    help: 'steps between checkpoints; 0: by time only',
    identity: false,
    aliases: ['save-every', 'checkpoint-steps'],
  }),
  /**
   * A checkpoint is also written at the end of the first step that ends this many minutes after the last one, or after the
   * start; 0: never. Whatever these say, the last whole step is saved when the run ends, is stopped or fails. Default 10.
   */
  saveMinutes: number({
    least: 0,
    default: 10,
    help: 'minutes between checkpoints, whatever the steps; 0: by steps only',
    identity: false,
  }),
  /** Steps between evaluations; 0: only at the end. Default 0. */
  evalSteps: whole({
    least: 0,
    default: 0,
    help: 'steps between evaluations; 0: only at the end',
    identity: false,
    aliases: ['eval-every'],
  }),
  /** Steps between `log` events. Default 1. */
  loggingSteps: whole({
    least: 1,
    default: 1,
    help: 'steps between lines of the log',
    identity: false,
    aliases: ['log-steps', 'log-every'],
  }),
  /** Checkpoints to keep, the oldest go first. Default 2. */
  saveTotalLimit: whole({
    least: 1,
    default: 2,
    help: 'checkpoints to keep, the oldest go first',
    identity: false,
    aliases: ['keep-checkpoints', 'max-checkpoints'],
  }),
  /** Form of an exported PiSSA adapter: a LoRA of rank 2r on the untouched base, or the residual model's pair. Default `lora`. */
  export: choice({
    choices: ['lora', 'residual'],
    default: 'lora',
    help: 'form of a PiSSA adapter: rank 2r on the untouched base, or the residual pair',
    identity: false,
  }),
  /** Anything JSON, kept in run/config.json under "command" beside the trainer's own resolved options. */
  runConfig: json<unknown, null>({
    of: 'JSON',
    schema: z.unknown(),
    default: null,
    help: "a program's own notes",
    identity: false,
    only: 'library',
  }),
});

/** The past of the model that is trained. */
export const preparationOptions = group(kOutputGroup, {
  /**
   * Anything JSON that was done to the model before, such as a head's warm-up, and that a run's numbers depend on: a checkpoint
   * of a run with another preparation is not continued.
   */
  preparation: json<Readonly<Record<string, unknown>>, undefined>({
    of: 'an object',
    schema: z.record(z.string(), z.unknown()),
    help: 'what was done to the model before',
    only: 'library',
  }),
});

/** Memory and time that a run may spend. */
export const resourceOptions = group('Resources', {
  /**
   * Memory that the process may hold: `max` (the fastest plan), `min` (the smallest), or bytes. The losses are the same,
   * the gradients but for rounding. Default: what the model's own settings say (`layerKeep`: `lean`).
   */
  memoryBudget: size({
    words: ['max', 'min'],
    default: null,
    help: 'what the process may hold: the fastest plan, the smallest, or a size such as 1.2GiB',
    // A run may go on within another number of bytes: what repeats is the kind of plan.
    identity: (budget: 'max' | 'min' | number | null) =>
      typeof budget === 'number' ? 'bytes' : (budget ?? undefined),
    aliases: ['max-memory', 'gradient-checkpointing', 'memory'],
  }),
  /**
   * Run the teacher once for each sequence and keep what the consistency term needs of it, on disk: of a row C numbers in f32
   * (f64 beside f64) and an entropy in f64. For runs of several epochs, with a frozen head without soft-capping.
   * Default false.
   */
  cacheTeacher: onOff({
    default: false,
    help: 'run the teacher once for each sequence and keep its part; for runs of several epochs',
    // Checkpoints from before the option do not have it.
    identity: (on: boolean) => on || undefined,
  }),
  /**
   * Run micro-batches and updates of shapes that repeat as graphs: recorded once, launched as one. For GPUs and language
   * models without a loss of one's own. The numbers are the same bit for bit. Default false.
   */
  captureGraphs: onOff({
    default: false,
    help: 'run micro-batches and updates of shapes that repeat as graphs, on a GPU',
    identity: false,
    aliases: ['cuda-graphs', 'torch-compile'],
  }),
});

/** Which of the evaluated steps a run exports. */
export const bestOptions = group(kOutputGroup, {
  /**
   * Keep the parameters of the step whose evaluation was best by this metric, and export those; null: export the last ones.
   * Default for a classifier with `evalSteps`: accuracy, Pearson's r for regression, F1 over all decisions for several labels.
   * Default for a language model: null (`loss` is what it can be judged by). A metric that the task has not is refused by the
   * Trainer's constructor.
   */
  metricForBestModel: choiceOrNull({
    choices: kMetricNames,
    help:
      'export the evaluated step that was best by this, a language model by loss; default: of a classifier with ' +
      'evaluations on the way the first of the GLUE task, else accuracy, pearson or f1Micro',
    identity: false,
    aliases: ['load-best-model-at-end', 'best-metric', 'metric'],
  }),
});

/** The seed, by which a run repeats. */
export const seedOptions = group('Model and data', {
  /**
   * Kept with the run and compared when it is resumed; nothing is drawn from it. The adapter's first values and dropout come of
   * the `seed` of `AdapterModel.create`, the order of the data of the data source's. Default 42.
   */
  seed: whole({
    least: 0,
    default: 42,
    help: 'of the order of the data and the start of the adapter',
    aliases: ['random-seed', 'data-seed'],
  }),
});

/** All of these in one table. */
export const trainerOptions = {
  ...optimizationOptions,
  ...outputOptions,
  ...preparationOptions,
  ...bestOptions,
  ...resourceOptions,
  ...seedOptions,
};

/** Values that {@link trainerChecks} look at: the options', and whether there are held-out examples. */
type TogetherInput = InputOf<typeof trainerOptions> & { readonly evalData?: unknown };

/** Combinations of a run's options that are refused. */
export const trainerChecks: readonly Check<TogetherInput>[] = [
  {
    when: ({ overwrite, resume }) => overwrite === true && resume === true,
    message: (_, name) => `${name('overwrite')} and ${name('resume')} exclude each other`,
  },
  {
    when: ({ resume, output }) => resume === true && (output ?? null) === null,
    message: (_, name) => `${name('resume')} needs ${name('output')}, the folder of the run`,
  },
  {
    when: ({ metricForBestModel, evalData }) =>
      (metricForBestModel ?? null) !== null && evalData === undefined,
    message: (_, name) => `${name('metricForBestModel')} needs ${name('evalData')}`,
  },
];

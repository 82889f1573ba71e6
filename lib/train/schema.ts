/**
 * The options of a training run, one entry each; see lib/options/option.ts. The options of loss terms are declared with the
 * terms (lib/losses/terms), those of the adapter in lib/adapters/lora_options.ts.
 */
import { z } from 'zod';
import { kMetricNames } from '../data/glue.ts';
import { RAMP_TYPES, SCHEDULER_NAMES, type SchedulerOptions } from '../optim/schedulers.ts';
import {
  choice,
  choiceOrNull,
  filePath,
  json,
  number,
  onOff,
  settings,
  size,
  whole,
} from '../options/kinds.ts';
import { type Check, DEFAULT_SEED, group, type InputOf } from '../options/option.ts';
import { anyAbove0, given, is, needing } from '../options/requirements.ts';

/** Names of the optimisers. */
export const OPTIMIZER_NAMES = ['adamw', 'adafactor', 'sgd', 'lora_fa', 'riemannian'] as const;
/**
 * The name of an optimiser: `adamw`, `adafactor`, `sgd`, or one for adapters alone: `lora_fa` (LoRA-FA: trains B, not A), `riemannian`
 * (AdamW with Riemannian preconditioning of A and B).
 */
export type OptimizerName = (typeof OPTIMIZER_NAMES)[number];

/** Values of the option `compute`. */
export const COMPUTE_MODES = ['dtype', 'int8', 'teacher', 'dx', 'teacher,dx'] as const;
/** The products with frozen weights that a run computes in int8: see `compute` of {@link TrainerOptions}. */
export type ComputeMode = (typeof COMPUTE_MODES)[number];

const share = z.number().optional();
const curve = z.enum(RAMP_TYPES).optional();
/** Schema of the settings of all schedules; each schedule itself checks that those it needs are given. */
const schedulerFields = z.strictObject({
  ...{ numCycles: share, lrEnd: share, power: share, minLr: share, minLrRate: share },
  ...{ timescale: share, numDecaySteps: share, numStableSteps: share, minLrRatio: share },
  ...{ warmupType: curve, decayType: curve },
} satisfies Record<keyof SchedulerOptions, z.ZodType>);

/** The requirement of the options of Adam's moments. */
const kMoments = is('optim', 'adamw', 'lora_fa', 'riemannian');

/** Options of the optimisation, under the names of transformers. */
export const optimizationOptions = group('Optimization', {
  /** Optimiser to use. Default `adamw`, unless the method has one of its own. */
  optim: choice({
    choices: OPTIMIZER_NAMES,
    default: 'adamw',
    help: 'optimizer, adamw unless the method has its own',
    aliases: ['optimizer', 'optimiser'],
  }),
  /** Peak learning rate. Default 2e-5. */
  learningRate: number({
    least: 0,
    default: 2e-5,
    help: 'highest learning rate',
    aliases: ['lr', 'rate', 'max-lr', 'peak-lr'],
  }),
  /** Learning rate schedule, by its name in transformers. Default `cosine`. */
  lrSchedulerType: choice({
    choices: SCHEDULER_NAMES,
    default: 'cosine',
    help: 'schedule of the learning rate',
    aliases: ['lr-scheduler', 'scheduler', 'lr-schedule'],
  }),
  /** Settings that the schedule needs, see {@link SchedulerOptions}. Default none. */
  lrSchedulerKwargs: settings<SchedulerOptions>({
    fields: schedulerFields as never,
    of: 'options of the schedule',
    default: {},
    help: 'what the schedule asks for, such as {"min_lr_rate": 0.1} for cosine_with_min_lr',
    aliases: ['scheduler-kwargs'],
  }),
  /** Number of warm-up steps; a value below 1 is a fraction of the run, rounded up to whole steps. Default 0.03. */
  warmupSteps: number({
    least: 0,
    default: 0.03,
    help: 'warm-up steps; below 1: a fraction of the run',
    aliases: ['warmup', 'num-warmup-steps'],
    off: 0,
    requires: [
      {
        holds: ({ lrSchedulerType }) => lrSchedulerType !== 'constant',
        needs: (name) =>
          `a schedule with a warm-up, which ${name('lrSchedulerType')} constant has not`,
      },
    ],
  }),
  /** Decoupled weight decay. Default 0. */
  weightDecay: number({ least: 0, default: 0, help: 'decoupled weight decay', aliases: ['wd'] }),
  /** Decay rate of AdamW's first moment. Default 0.9. */
  adamBeta1: number({
    least: 0,
    below: 1,
    default: 0.9,
    help: 'decay of the first moment',
    requires: [kMoments],
  }),
  /** Decay rate of AdamW's second moment. Default 0.999. */
  adamBeta2: number({
    least: 0,
    below: 1,
    default: 0.999,
    help: 'decay of the second moment',
    requires: [kMoments],
  }),
  /**
   * Number added to the square root of AdamW's second moment, for numerical stability. Default 1e-8; under the method lora_fa 1e-6.
   */
  adamEpsilon: number({
    least: 0,
    default: 1e-8,
    help: 'added to the root of the second moment, 1e-8 unless the method sets it',
    aliases: ['eps', 'epsilon', 'adam-eps'],
    requires: [kMoments],
  }),
  /** Momentum of SGD; the other optimisers do not have this option. Default 0. */
  momentum: number({
    least: 0,
    below: 1,
    default: 0,
    help: 'momentum',
    aliases: ['sgd-momentum'],
    requires: [is('optim', 'sgd')],
  }),
  /** Number on the diagonals of the Gram matrices of A and B by which `riemannian` divides. Default 0.01, as in PEFT. */
  riemannianReg: number({
    least: 0,
    above: true,
    default: 0.01,
    help: 'number on the diagonal of the Gram matrices of A and B',
    aliases: ['riemannian-regularization'],
    requires: [is('optim', 'riemannian')],
  }),
  /** Ratio of the learning rate of B to that of A, as in LoRA+. Default 1. */
  loraplusLrRatio: number({
    least: 0,
    above: true,
    default: 1,
    help: 'LoRA+: learning rate of B over that of A',
    aliases: ['loraplus-ratio', 'lora-plus-lr-ratio'],
  }),
  /** Maximum norm, to which gradients are clipped; 0 switches clipping off. Default 1. */
  maxGradNorm: number({
    least: 0,
    default: 1,
    help: 'gradients are clipped to this norm; 0: no clipping',
    aliases: ['grad-clip', 'clip', 'clip-grad-norm', 'gradient-clipping', 'max-norm'],
  }),
  /** Number of passes over the data. Default 1. */
  numTrainEpochs: number({
    least: 0,
    above: true,
    default: 1,
    help: 'passes over the data',
    aliases: ['epochs', 'num-epochs', 'epoch'],
  }),
  /** Number of steps of the run, which overrides `numTrainEpochs`. Default, and null: the epochs decide. */
  maxSteps: whole({
    least: 1,
    default: null,
    help: 'number of steps; overrides the epochs',
    aliases: ['steps', 'num-steps', 'max-train-steps', 'iters'],
  }),
  /** Number of micro-batches in a step. Default 1. */
  gradientAccumulationSteps: whole({
    least: 1,
    default: 1,
    help: 'micro-batches per step',
    aliases: ['grad-accum', 'grad-acc', 'gradient-accumulation', 'accumulation-steps'],
  }),
});

const kOutputGroup = 'Output';

/** Options that determine where and how often a run is written; without `output` nothing is written at all. */
export const outputOptions = group(kOutputGroup, {
  /** Folder for the adapter and the run/ folder; it must be empty or absent unless `overwrite` or `resume` is set. */
  output: filePath({
    placeholder: 'folder',
    default: null,
    help: 'where the adapter and run/ are written',
    identity: false,
    aliases: ['output-dir', 'out', 'save-dir', 'output-folder'],
  }),
  /** Whether to replace an earlier run in the output folder. Default false. */
  overwrite: onOff({
    default: false,
    help: 'replace an earlier run in the output folder',
    identity: false,
    aliases: ['overwrite-output-dir', 'force'],
    requires: [given('output')],
  }),
  /** Whether to continue, bit for bit, from the last good checkpoint of `output`. Default false. */
  resume: onOff({
    default: false,
    help: 'continue from the last checkpoint in the output folder',
    identity: false,
    aliases: ['resume-from-checkpoint', 'continue'],
  }),
  /** Number of steps between checkpoints; with 0, they are written by time only. Default 0. */
  saveSteps: whole({
    least: 0,
    default: 0,
    help: 'steps between checkpoints; 0: by time only',
    identity: false,
    aliases: ['save-every', 'checkpoint-steps'],
    requires: [given('output')],
  }),
  /**
   * Minutes between checkpoints: one is also written at the end of the first step that ends this many minutes after the last
   * checkpoint, or after the start; 0 switches this off. Whatever `saveSteps` and `saveMinutes` are, the last completed step is
   * saved when the run ends, is stopped or fails. Default 10.
   */
  saveMinutes: number({
    least: 0,
    default: 10,
    help: 'minutes between checkpoints, whatever the steps; 0: by steps only',
    identity: false,
    off: 0,
    requires: [given('output')],
  }),
  /** Number of steps between evaluations; with 0, there is one only at the end. Default 0. */
  evalSteps: whole({
    least: 0,
    default: 0,
    help: 'steps between evaluations; 0: only at the end',
    identity: false,
    aliases: ['eval-every'],
    requires: [given('evalData')],
  }),
  /** Number of steps between `log` events. Default 1. */
  loggingSteps: whole({
    least: 1,
    default: 1,
    help: 'steps between lines of the log',
    identity: false,
    aliases: ['log-steps', 'log-every'],
  }),
  /** Number of checkpoints to keep; the oldest are removed first. Default 2. */
  saveTotalLimit: whole({
    least: 1,
    default: 2,
    help: 'checkpoints to keep; older ones are removed',
    identity: false,
    requires: [given('output'), anyAbove0('saveSteps', 'saveMinutes')],
    aliases: ['keep-checkpoints', 'max-checkpoints'],
  }),
  /**
   * Form of the exported adapter: `lora`, on the unchanged base (PiSSA of rank 2r; a method without a pair A, B with its own tensors),
   * `plain-lora`, a pair on the unchanged base in any case, or `residual`, PiSSA's pair of rank r with the residual model. Default `lora`.
   */
  export: choice({
    choices: ['lora', 'plain-lora', 'residual'],
    default: 'lora',
    help: "form of the adapter: on the untouched base (PiSSA: rank 2r), as a plain LoRA in any case, or PiSSA's residual pair",
    identity: false,
    requires: [given('output')],
  }),
});

/** The option that records how the model was prepared before the run. */
export const preparationOptions = group(kOutputGroup, {
  /**
   * Any JSON value that describes how the model was prepared, such as by warming up its head. The numbers of a run depend on
   * it, so a checkpoint of a run with another preparation is not continued.
   */
  preparation: json<Readonly<Record<string, unknown>>, undefined>({
    of: 'an object',
    schema: z.record(z.string(), z.unknown()),
    help: 'what was done to the model before',
    only: 'library',
  }),
});

/** The options by which a program says more of its run, which is written beside it. */
export const noteOptions = group(kOutputGroup, {
  /** Any JSON value, kept in run/config.json under "runConfig" beside the settings of the run. */
  runConfig: json<unknown, null>({
    of: 'JSON',
    schema: z.unknown(),
    default: null,
    help: "a program's own notes",
    identity: false,
    only: 'library',
  }),
  /** The arguments of the command line that makes the run, kept in run/environment.jsonl. Default: none. */
  commandLine: json<readonly string[], null>({
    of: 'a list of texts',
    schema: z.array(z.string()).readonly(),
    default: null,
    help: 'the arguments of the command line',
    identity: false,
    only: 'library',
  }),
});

/** Options that determine the memory and time that a run uses. */
export const resourceOptions = group('Resources', {
  /**
   * Memory that the process may use: `max` (the fastest plan), `min` (the smallest), or bytes. The losses are the same in every
   * case, and the gradients differ only by rounding. Default: the model's own setting (`layerKeep`).
   */
  memoryBudget: size({
    words: ['max', 'min'],
    default: null,
    help: 'memory of the process: max (the fastest plan), min (the smallest), or a size such as 1.2GiB',
    // A run may be resumed with another number of bytes, so only the kind of budget counts.
    identity: (budget: 'max' | 'min' | number | null) =>
      typeof budget === 'number' ? 'bytes' : (budget ?? undefined),
    aliases: ['max-memory', 'memory'],
  }),
  /**
   * Whether to run the teacher once for each sequence and keep the values that the consistency term needs in a file: for each
   * row, C numbers in f32 (f64 for a model in f64) and an entropy in f64. It saves time in runs of several epochs, and requires
   * a frozen head without soft-capping. Default false.
   */
  cacheTeacher: onOff({
    default: false,
    help: 'run the teacher once per sequence and cache its outputs; for runs of several epochs',
    // A value of false is left out, since checkpoints from before this option do not have it.
    identity: (on: boolean) => on || undefined,
  }),
  /**
   * Path of a file that keeps the same values as `cacheTeacher` and is kept itself, so that later runs on the same base and data do
   * not run the teacher at all, with another rank, method, seed or learning rate, too. One run appends to it; others that run
   * meanwhile read what is there. Default: none.
   */
  teacherCache: filePath({
    placeholder: 'file',
    default: null,
    help: "keep the teacher's outputs in this file for later runs on the same base and data",
    // Where the file is does not matter.
    identity: (path: string | null) => (path === null ? undefined : true),
  }),
  /**
   * Products with the frozen weights that are computed in int8: `int8` (all of them: forward passes and the gradients of inputs), `teacher`
   * (those of the teacher's pass), `dx` (the gradients of inputs), `teacher,dx`, or none, `dtype`: in the model's dtype. It requires a CPU
   * with VNNI or AMX. What is exported, evaluated and generated is computed with the weights as they are. Default `dtype`.
   */
  compute: choice({
    choices: COMPUTE_MODES,
    default: 'dtype',
    help: "which products with the frozen weights are in int8: none (dtype), all (int8), the teacher's, the input gradients' (dx)",
    // A value of dtype is left out, since checkpoints from before this option do not have it.
    identity: (mode: string) => (mode === 'dtype' ? undefined : mode),
    aliases: ['int8', 'quantized-training'],
  }),
  /**
   * Whether to run micro-batches and updates of repeated shapes as graphs, which are recorded once and then launched as a
   * whole. It requires a GPU and a language model with a loss of the library. The numbers are the same bit for bit.
   * Default false.
   */
  captureGraphs: onOff({
    default: false,
    help: 'record repeated micro-batches and updates as graphs and launch these, on a GPU',
    identity: false,
    aliases: ['cuda-graphs', 'torch-compile'],
  }),
});

/** The option that determines which of the evaluated steps a run exports. */
export const bestOptions = group(kOutputGroup, {
  /**
   * Metric by which the best evaluated step is chosen, whose parameters are kept and exported; with null, the last step is
   * exported. Default for a classifier with `evalSteps`: accuracy, Pearson's r for regression, F1 over all decisions for
   * several labels. Default for a language model: null (its only metric is `loss`). The Trainer's constructor refuses a metric
   * that the task does not have.
   */
  metricForBestModel: choiceOrNull({
    choices: kMetricNames,
    help:
      'export the evaluated step with the best value of this metric, for a language model loss; default, for a classifier ' +
      'with --eval-steps: the first metric of the GLUE task, else accuracy, pearson or f1Micro',
    identity: false,
    aliases: ['load-best-model-at-end', 'best-metric', 'metric'],
  }),
});

/** The seed that is recorded with a run. */
export const seedOptions = group('Model and data', {
  /**
   * Seed that is recorded with the run and compared when it is resumed; no random numbers are drawn from it. The adapter's
   * initial values and dropout depend on the `seed` of `AdapterModel.create`, and the order of the data on that of the data
   * source. Default 42.
   */
  seed: whole({
    least: 0,
    default: DEFAULT_SEED,
    help: "seed of the data's order and the adapter's initial values",
    aliases: ['random-seed', 'data-seed'],
  }),
});

/** All options of a run in one table. */
export const trainerOptions = {
  ...optimizationOptions,
  ...outputOptions,
  ...preparationOptions,
  ...noteOptions,
  ...bestOptions,
  ...resourceOptions,
  ...seedOptions,
};

/** Checks that refuse combinations of a run's options. */
export const trainerChecks: readonly Check<InputOf<typeof trainerOptions>>[] = [
  {
    when: ({ overwrite, resume }) => overwrite === true && resume === true,
    message: (_, name) =>
      `${name('overwrite')} and ${name('resume')} exclude each other; pass one of them`,
  },
  needing('resume', given('output'), ', the folder of the run'),
  needing('metricForBestModel', given('evalData')),
  {
    when: ({ cacheTeacher, teacherCache }) =>
      cacheTeacher === true && (teacherCache ?? null) !== null,
    message: (_, name) =>
      `${name('cacheTeacher')} and ${name('teacherCache')} exclude each other: the first keeps the outputs for one run, the second for ` +
      'later ones, too; pass one of them',
  },
  needing(
    'samplePrompts',
    given('evalData'),
    ', since the prompts are answered at each evaluation',
  ),
];

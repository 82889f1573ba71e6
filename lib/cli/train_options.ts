/** The options of `balora train`, in the names of transformers and PEFT. */
import { ALL_LINEAR } from '../adapters/config.ts';
import { METHOD_NAMES, METHOD_OPTIONS, type MethodSwitches } from '../adapters/methods/registry.ts';
import { GLUE_TASKS, kMetricNames } from '../data/glue.ts';
import { kProblemTypes } from '../losses/problem_type.ts';
import { SCHEDULER_NAMES } from '../optim/schedulers.ts';
import { TASK_NAMES } from '../tasks/list.ts';
import { REGULARIZER_OPTIONS, type RegularizerOptions } from '../train/regularizers.ts';
import { OPTIMIZER_NAMES } from '../train/types.ts';
import type { OptionRow, OptionType, OptionValues } from './option_table.ts';
import {
  choice,
  declared,
  integer,
  integers,
  loraInit,
  memoryBudget,
  modules,
  nameList,
  names,
  number,
  onOff,
  patterns,
  schedulerKwargs,
  template,
  text,
} from './option_types.ts';

const kGroups = {
  run: 'Model, data and output',
  adapter: 'Method and adapter',
  optimization: 'Optimization',
  examples: 'Examples',
  labels: 'Classification (--task sequence-classification)',
  regularizers: 'BA-LoRA regularizers',
} as const;

const row =
  (group: string) =>
  <T>(type: OptionType<T>, help: string, more: Partial<OptionRow<T>> = {}): OptionRow<T> => ({
    type,
    help,
    group,
    ...more,
  });
const run = row(kGroups.run);
const adapter = row(kGroups.adapter);
const optimization = row(kGroups.optimization);
const examples = row(kGroups.examples);
const labels = row(kGroups.labels);
const regularizers = row(kGroups.regularizers);

/** How rows become examples; `evaluate` and `inspect` take these too. */
export const kExampleOptions = {
  promptTemplate: examples(template(), 'text with {field} places, or alpaca (the recipe) or none'),
  promptField: examples(text('field'), "the prompt's field; default: found among known pairs"),
  responseField: examples(text('field'), "the response's field"),
  maxLength: examples(integer(2), 'tokens of an example; longer ones are cut'),
  maxSourceLength: examples(
    integer(2),
    'seq2seq-lm: tokens of a source; longer ones are cut; default: 512',
  ),
  maxTargetLength: examples(
    integer(2),
    'seq2seq-lm: tokens of a target; longer ones are cut; default: 128',
  ),
  columns: examples(names(), 'columns of a .tsv or .csv file that has no header'),
};

/** How labelled rows become examples; `evaluate` takes these too. */
export const kLabelOptions = {
  glue: labels(choice(...Object.keys(GLUE_TASKS)), 'a task of GLUE: gives fields and label names'),
  textField: labels(text('field'), "the text's field; default: found among known ones"),
  textPairField: labels(text('field'), "the second text's field, for pairs"),
  labelField: labels(text('field'), "the label's field; default: label"),
  numLabels: labels(
    integer(1),
    'outputs of the head; 1: regression; default: counted in the data, for evaluate in the trained head',
  ),
  labelNames: labels(
    names(),
    'class names by id, where the data writes names; default: those of a trained head, else sorted',
  ),
  problemType: labels(
    choice(...kProblemTypes),
    'what the outputs mean; default: by the labels, for evaluate as the trained head says',
  ),
};

/** What a model is tuned for. */
export const kTaskOption = {
  task: run(
    choice(...TASK_NAMES),
    'what the model learns: to go on a text, to answer a source with a target (T5), or to label whole texts',
  ),
};

/** How a model is loaded and run. */
export const kModelOptions = {
  model: run(text('path'), 'a model folder, a GGUF file or a hub id', { required: true }),
  dtype: run(choice('f32', 'bf16'), 'of the frozen base and the activations'),
  device: run(text('name'), 'cpu, cuda, cuda:1'),
  threads: run(integer(1), 'of the engine; default: the cores'),
  ignoreKeys: run(
    nameList(),
    'keys of config.json that balora does not know and that you know not to matter',
  ),
};

/** The options of all loss terms, as their own files declare them. */
const kRegularizerOptions = Object.fromEntries(
  Object.entries(REGULARIZER_OPTIONS).map(([key, spec]) => [
    key,
    regularizers(declared(spec), spec.help),
  ]),
) as { [K in keyof RegularizerOptions]-?: OptionRow<NonNullable<RegularizerOptions[K]>> };

export const kTrainOptions = {
  ...kTaskOption,
  ...kModelOptions,
  data: run(text('file'), 'training data: .tsv, .csv, .parquet or JSON Lines', { required: true }),
  evalData: run(text('file'), 'held-out data, like the training data'),
  output: run(text('folder'), 'where the adapter and run/ are written'),
  overwrite: run(onOff(), 'replace an earlier run in the output folder'),
  resume: run(onOff(), 'go on from the last checkpoint in the output folder'),
  export: run(
    choice('lora', 'residual'),
    'form of a PiSSA adapter: rank 2r on the untouched base, or the residual pair',
  ),
  evalSteps: run(integer(0), 'steps between evaluations; 0: only at the end'),
  perDeviceEvalBatchSize: run(
    integer(1),
    'examples of a batch of evaluation; the result does not depend on it; default: as in training',
  ),
  saveSteps: run(integer(0), 'steps between checkpoints; 0: by time only'),
  saveMinutes: run(number(0), 'minutes between checkpoints, whatever the steps; 0: by steps only'),
  loggingSteps: run(integer(1), 'steps between lines of the log'),
  seed: run(integer(0), 'of the order of the data and the start of the adapter'),
  memoryBudget: run(
    memoryBudget(),
    'what the process may hold: the fastest plan, the smallest, or a size such as 1.2GiB',
  ),
  cacheTeacher: run(
    onOff(),
    'run the teacher once for each sequence and keep its part; for runs of several epochs',
  ),
  captureGraphs: run(
    onOff(),
    'run micro-batches and updates of shapes that repeat as graphs, on a GPU',
  ),
  dryRun: run(onOff(), 'print what the run would take in memory and time, and stop', {
    commandLineOnly: true,
  }),

  method: adapter(choice(...METHOD_NAMES), 'preset that the other options override'),
  r: adapter(integer(1), 'rank'),
  loraAlpha: adapter(number(0), 'scale: alpha / r, with rslora alpha / sqrt(r)'),
  ...methodSwitches(),
  rankPattern: adapter(patterns(integer(1)), 'ranks of their own, such as {"down_proj": 16}'),
  alphaPattern: adapter(patterns(number(0)), 'the same for alpha'),
  initLoraWeights: adapter(loraInit(), 'start of the adapter'),
  targetModules: adapter(
    modules(ALL_LINEAR),
    'trailing module names, a regular expression, or all-linear',
  ),
  excludeModules: adapter(modules(), 'the same, taken out'),
  layersToTransform: adapter(integers(), 'adapt these blocks only'),
  layersPattern: adapter(names(), 'the list that the numbers count in; default: any'),
  modulesToSave: adapter(nameList(), 'modules that are trained and kept whole'),
  loraDropout: adapter(number(0), 'share of the inputs of A that training drops'),
  adapter: adapter(text('folder'), 'go on from an adapter (PEFT folder)'),

  optim: optimization(choice(...OPTIMIZER_NAMES), 'optimizer'),
  loraplusLrRatio: optimization(number(0), 'LoRA+: learning rate of B over that of A'),
  learningRate: optimization(number(0), 'highest learning rate'),
  lrSchedulerType: optimization(choice(...SCHEDULER_NAMES), 'schedule of the learning rate'),
  lrSchedulerKwargs: optimization(
    schedulerKwargs(),
    'what the schedule asks for, such as {"min_lr_rate": 0.1} for cosine_with_min_lr',
  ),
  warmupSteps: optimization(number(0), 'warm-up; below 1: a share of the run'),
  weightDecay: optimization(number(0), 'decoupled weight decay'),
  adamBeta1: optimization(number(0), 'decay of the first moment'),
  adamBeta2: optimization(number(0), 'decay of the second moment'),
  adamEpsilon: optimization(number(0), 'added to the root of the second moment'),
  maxGradNorm: optimization(number(0), 'gradients are clipped to this norm; 0: not'),
  numTrainEpochs: optimization(number(0), 'passes over the data'),
  maxSteps: optimization(integer(1), 'steps; wins over the epochs'),
  perDeviceTrainBatchSize: optimization(
    integer(1),
    'examples (rows, when packing) of a micro-batch',
  ),
  gradientAccumulationSteps: optimization(integer(1), 'micro-batches of a step'),

  ...kExampleOptions,
  packing: examples(onOff(), 'fill rows of max-length tokens with several examples each'),
  shuffle: examples(onOff(), 'a new order in every epoch', {
    helpOff: 'keep the order of the file',
  }),

  ...kLabelOptions,
  groupByLength: labels(onOff(), 'texts of like length in one micro-batch'),
  newHead: labels(onOff(), 'draw a new head even if the model has one'),
  headWarmupEpochs: labels(
    integer(0),
    'passes of a linear probe that trains the head before tuning, and with it the teacher; 0: none',
  ),
  metricForBestModel: labels(
    choice(...kMetricNames),
    'export the evaluated step that was best by this; default: the first of the GLUE task, else accuracy, pearson or f1Micro',
  ),

  ...kRegularizerOptions,
} satisfies Record<string, OptionRow>;

/** The switches that the methods bring. */
function methodSwitches(): Record<keyof MethodSwitches, OptionRow<boolean>> {
  const rows = Object.entries(METHOD_OPTIONS).map(([name, { help }]) => [
    name,
    adapter(onOff(), help),
  ]);
  return Object.fromEntries(rows) as Record<keyof MethodSwitches, OptionRow<boolean>>;
}

export type TrainSettings = OptionValues<typeof kTrainOptions>;

/**
 * The options of `balora train`: the options of the library as they are declared there, and those that only the command line
 * has, under the names of transformers and PEFT.
 */
import { loraOptions } from '../adapters/lora_options.ts';
import { METHOD_NAMES, REFUSED_METHODS } from '../adapters/methods/registry.ts';
import { corruptionOptions } from '../data/corruption_options.ts';
import { BATCH_SIZES, lengthOptions, shuffleOption } from '../data/data_options.ts';
import { TRAINED_TURNS } from '../data/example_format.ts';
import { DATA_FORMATS } from '../data/forms/list.ts';
import { GLUE_TASKS } from '../data/glue.ts';
import { kProblemTypes } from '../losses/problem_type.ts';
import { BASE_FORMATS } from '../models/auto.ts';
import { TORCH_DTYPES } from '../options/elsewhere.ts';
import {
  choice,
  filePath,
  filePaths,
  nameList,
  names,
  numbers,
  onOff,
  template,
  text,
  valuesByName,
  whole,
  wordsByName,
} from '../options/kinds.ts';
import { defaultsOf, group, type ValuesOf } from '../options/option.ts';
import { given } from '../options/requirements.ts';
import { TASK_NAMES } from '../tasks/list.ts';
import { REGULARIZER_OPTIONS } from '../train/regularizers.ts';
import {
  bestOptions,
  optimizationOptions,
  outputOptions,
  resourceOptions,
  seedOptions,
} from '../train/schema.ts';
import { withFlags } from './option_table.ts';

const kRun = 'Model and data';

/** Options that determine how rows become examples; `evaluate` and `inspect` have them as well. */
export const kExampleOptions = group('Examples', {
  dataFormat: choice({
    choices: DATA_FORMATS,
    help: 'the form of the rows; default: found by their columns',
    aliases: ['formatting', 'dataset-type', 'dataset-format'],
  }),
  promptTemplate: template({
    help: "chat (the model's chat template), alpaca (that of the recipe), none, text with {field} placeholders, or a file of such text",
    aliases: ['template'],
  }),
  promptField: text({
    placeholder: 'field',
    help: "the prompt's field; default: found among known pairs",
    aliases: ['prompt-column', 'instruction-field', 'input-field'],
  }),
  responseField: text({
    placeholder: 'field',
    help: "the response's field",
    aliases: ['response-column', 'answer-field', 'output-field', 'target-field'],
  }),
  messagesField: text({
    placeholder: 'field',
    help: "a conversation's field; default: messages or conversations",
    aliases: ['field-messages', 'messages-column', 'conversations-field'],
  }),
  roleMap: wordsByName({
    placeholder: 'from=role,...',
    help: "roles of the chat template for the data's own, beside the known ones",
    aliases: ['roles', 'role-tags'],
  }),
  trainOnTurns: choice({
    choices: TRAINED_TURNS,
    help: "what is trained on: the assistant's messages, the last of them, or all of the text; default: assistant",
    aliases: [
      'mask-history',
      'train-on-prompt',
      'train-on-inputs',
      'completion-only-loss',
      'assistant-only-loss',
      'roles-to-train',
    ],
  }),
  ...lengthOptions,
  columns: names({ help: 'columns of a .tsv or .csv file that has no header' }),
});

/** Options that determine how labelled rows become examples; `evaluate` has them as well. */
export const kLabelOptions = group('Classification (--task sequence-classification)', {
  glue: choice({
    choices: Object.keys(GLUE_TASKS),
    help: 'a task of GLUE, which sets fields and label names',
    aliases: ['task-name'],
  }),
  textField: text({
    placeholder: 'field',
    help: "the text's field, also of plain texts for causal-lm; default: found among known ones",
    aliases: ['text-column'],
  }),
  textPairField: text({ placeholder: 'field', help: "the second text's field, for pairs" }),
  labelField: text({
    placeholder: 'field',
    help: "the label's field; default: label",
    aliases: ['label-column'],
  }),
  numLabels: whole({
    least: 1,
    help: 'outputs of the head; 1: regression; default: from the data, for evaluate from the trained head',
    aliases: ['num-classes'],
  }),
  labelNames: names({
    help: 'class names in the order of their ids; default: those of a trained head, else the names in the data, sorted',
  }),
  problemType: choice({
    choices: kProblemTypes,
    help: 'what the outputs mean; default: from the labels, for evaluate from the trained head',
  }),
});

/** Options of labelled rows that only `train` has. */
export const kLabelTrainOptions = group('Classification (--task sequence-classification)', {
  groupByLength: onOff({ help: 'put texts of similar length into one micro-batch' }),
  newHead: onOff({ help: 'initialize a new head even if the model has one' }),
  headWarmupEpochs: whole({
    least: 0,
    help: 'epochs in which the head alone is trained before tuning, and with it the teacher; 0: none',
  }),
});

/** The option that names the task of a model. */
export const kTaskOption = group(kRun, {
  task: choice({
    choices: TASK_NAMES,
    help: 'what the model learns: to continue a text, to answer a source with a target (T5), or to label whole texts',
    aliases: ['task-type'],
  }),
});

/** The option of an adapter that is loaded onto the model. @param help what is done with it */
export function adapterOption(help: string, { required = false }: { required?: boolean } = {}) {
  return filePath({
    placeholder: 'folder',
    help: `${help}: a PEFT folder, or a checkpoint of a run`,
    aliases: ['adapter-name-or-path', 'adapter-path', 'lora-path'],
    ...(required && { required }),
  });
}

/** Options of the starts that are computed from the training data. */
export const calibrationOptions = group('Method and adapter', {
  calibration: filePath({
    placeholder: 'file',
    help: 'file that keeps what eva, corda and lora_ga compute from the training data; written where it does not exist',
    aliases: ['calibration-file', 'covariance-file'],
  }),
  calibrationData: filePaths({
    placeholder: 'file',
    help: 'what they read in the place of the training data, such as data whose knowledge corda_kpm is to keep',
  }),
  calibrationBatches: whole({
    least: 1,
    help: 'micro-batches that eva, corda and lora_ga read; default: 32, or an epoch',
    aliases: ['calibration-samples', 'num-calibration-samples'],
  }),
  calibrationSettings: valuesByName({
    help: 'settings of eva (rho, tau, whiten) and of lora_ga (direction, scale, stableGamma, quick), such as quick=true',
    aliases: ['eva-config', 'lora-ga-config'],
  }),
});

/** Options that determine how a model is loaded and run. */
export const kModelOptions = group(kRun, {
  model: filePath({
    placeholder: 'path',
    help: 'a model folder, a GGUF file or a hub id',
    required: true,
    aliases: ['model-name-or-path', 'model-name', 'model-path', 'base-model'],
  }),
  dtype: choice({
    choices: ['f32', 'bf16'],
    refused: TORCH_DTYPES,
    default: 'f32',
    help: 'type of the frozen base and the activations',
    aliases: ['bf16', 'torch-dtype', 'precision', 'fp16'],
  }),
  baseFormat: choice({
    choices: BASE_FORMATS,
    help: 'form of the frozen base in memory, nf4 being 4-bit blocks and gguf those of the GGUF file; default: that of dtype',
    aliases: ['quantization-bit'],
  }),
  baseOffload: onOff({
    help: 'read the frozen base from the disk as it is used, for a base larger than memory; what the memory budget leaves holds a part of it',
    aliases: ['cpu-offload', 'offload', 'offload-state-dict', 'disk-offload'],
  }),
  offloadFolder: filePath({
    placeholder: 'folder',
    help: 'where a base that is converted or quantised for --base-offload has its temporary file; default: TMPDIR, or /var/tmp',
    aliases: ['offload-dir'],
  }),
  device: text({ placeholder: 'name', default: 'cpu', help: 'cpu, cuda, cuda:1' }),
  threads: whole({
    least: 1,
    help: 'threads of the engine; default: one per core',
    aliases: ['num-threads', 'n-threads'],
  }),
  ignoreKeys: nameList({
    help: 'keys of config.json to ignore, which balora does not know and which change nothing',
  }),
  allowOtherBase: onOff({
    help: 'load an adapter that is a pair on a residual although the model is not that residual',
  }),
});

const kEvalData = group(kRun, {
  evalData: filePath({
    placeholder: 'file',
    help: 'held-out data, like the training data',
    aliases: ['validation-file', 'eval-file', 'eval-dataset', 'val-data', 'validation-data'],
  }),
});

/** Options of the sizes of micro-batches. */
export const kBatchSizes = group('Optimization', {
  perDeviceTrainBatchSize: whole({
    least: 1,
    default: BATCH_SIZES.command,
    help: 'examples (rows, when packing) per micro-batch',
    aliases: [
      'batch-size',
      'train-batch-size',
      'micro-batch-size',
      'bs',
      'per-gpu-train-batch-size',
    ],
  }),
  perDeviceEvalBatchSize: whole({
    least: 1,
    help: 'examples per batch of an evaluation, whose result does not depend on it; default: as in training',
    requires: [given('evalData')],
    aliases: ['eval-batch-size', 'per-gpu-eval-batch-size'],
  }),
});

export const kTrainOptions = withFlags({
  ...kTaskOption,
  ...kModelOptions,
  ...group(kRun, {
    data: filePaths({
      placeholder: 'file',
      help: 'training data: .tsv, .csv, .parquet, JSON Lines or a JSON array; may be given several times',
      required: true,
      aliases: ['train-file', 'dataset', 'dataset-name', 'train-data', 'data-path'],
    }),
    dataWeights: numbers({
      help: "shares of an epoch's examples that come from each of several files; default: every row once",
      aliases: ['interleave-probs', 'probabilities', 'dataset-weights'],
    }),
  }),
  ...kEvalData,
  ...group(kRun, {
    samplePrompts: filePath({
      placeholder: 'file',
      help: 'rows like the training data, whose prompts the model answers at each evaluation',
      aliases: ['sample-prompt', 'eval-prompts', 'test-prompts'],
    }),
  }),
  ...seedOptions,
  ...group(kRun, {
    dryRun: onOff({
      help: 'print the memory and time that the run would take, and stop',
      only: 'flag',
    }),
  }),

  ...outputOptions,
  ...bestOptions,
  ...resourceOptions,

  ...group('Method and adapter', {
    method: choice({
      choices: METHOD_NAMES,
      refused: REFUSED_METHODS,
      default: 'balora',
      help: 'preset, which the other options override',
      aliases: ['peft-method', 'finetuning-type'],
    }),
  }),
  ...loraOptions,
  ...calibrationOptions,
  ...group('Method and adapter', {
    adapter: adapterOption('continue training an adapter'),
  }),

  ...optimizationOptions,
  ...kBatchSizes,

  ...kExampleOptions,
  ...group('Examples', {
    packing: onOff({ help: 'fill rows of max-length tokens with several examples each' }),
    ...shuffleOption,
  }),

  ...kLabelOptions,
  ...kLabelTrainOptions,
  ...corruptionOptions,

  ...REGULARIZER_OPTIONS,
});

export type TrainSettings = ValuesOf<typeof kTrainOptions>;

/** The defaults that the command itself reads. */
export const kTrainDefaults = defaultsOf({
  method: kTrainOptions.method,
  dtype: kTrainOptions.dtype,
  device: kTrainOptions.device,
  perDeviceTrainBatchSize: kTrainOptions.perDeviceTrainBatchSize,
  seed: kTrainOptions.seed,
  shuffle: kTrainOptions.shuffle,
});

/** The options of `balora evaluate`. */
import { BATCH_SIZES } from '../data/data_options.ts';
import { countByName, filePath, nameList, onOff, pathList, whole } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import {
  adapterOption,
  kExampleOptions,
  kLabelOptions,
  kModelOptions,
  kTaskOption,
} from './train_options.ts';

/** The options of scoring a language model on benchmarks. */
export const kScoreOptions = group('Benchmarks (--tasks)', {
  tasks: nameList({
    help:
      'benchmarks to score a language model on, instead of a loss: gsm8k, mmlu, crows_pairs and others (docs/scoring.md), ' +
      'or YAML files of your own',
    aliases: ['benchmarks'],
  }),
  numFewshot: whole({
    least: 0,
    help: 'examples in front of each question; default: those of the task',
    aliases: ['fewshot', 'shots', 'n-shot'],
  }),
  fewshotData: filePath({
    placeholder: 'path',
    help: 'files of the examples, in the forms of --data; default: the folder of --data',
  }),
  limit: countByName({
    help: 'items of each task, from the first on, or of the named ones (gsm8k=50); default: all',
  }),
  maxNewTokens: whole({
    least: 1,
    help: 'new tokens of a generated answer; default: those of the task',
    aliases: ['max-gen-toks', 'max-tokens'],
  }),
  compare: pathList({
    placeholder: 'folder',
    help: 'score the model with each of these adapters, side by side, with measures of their collapse',
    aliases: ['adapters'],
  }),
  base: onOff({
    help: 'score the model without an adapter, too, beside those with one',
    aliases: ['with-base'],
  }),
  intruders: onOff({
    default: true,
    help: 'count the intruder dimensions of the adapters that are compared',
    helpOff: 'with --compare: do not count intruder dimensions, which takes long for large models',
  }),
  allowCodeExecution: onOff({
    help:
      'run the programs that the model writes, with limits and without network, files and processes of yours; ' +
      'no jail for one that attacks the kernel (docs/scoring.md)',
    aliases: ['confirm-run-unsafe-code'],
  }),
  unsafe: onOff({
    help: 'run them also where they cannot be kept from the network, your files and your processes',
  }),
  output: filePath({
    placeholder: 'folder',
    help: 'write a record of each item; a command that was stopped goes on from them',
    aliases: ['output-dir', 'output-path', 'out'],
  }),
});

export const kEvaluateOptions = {
  ...kTaskOption,
  ...kModelOptions,
  ...group('Model and data', {
    adapter: adapterOption('the adapter to load onto the model'),
    data: filePath({
      placeholder: 'file',
      help: 'held-out data: .tsv, .csv, .parquet, JSON Lines or a JSON array; with --tasks their folder or task=file,task=file; required',
      aliases: ['eval-data', 'validation-file', 'eval-file', 'test-file', 'dataset'],
    }),
    perDeviceEvalBatchSize: whole({
      least: 1,
      default: BATCH_SIZES.command,
      help: 'examples per batch; the result does not depend on it',
      aliases: ['batch-size', 'eval-batch-size'],
    }),
  }),
  ...kScoreOptions,
  ...group('Output', {
    json: onOff({
      help: 'print the result as JSON; of a loss with every example, of --tasks see --output for the items',
    }),
  }),
  ...kExampleOptions,
  ...kLabelOptions,
};

export type EvaluateSettings = ValuesOf<typeof kEvaluateOptions>;

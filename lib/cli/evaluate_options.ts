/** The options of `balora evaluate`. */
import { filePath, onOff, whole } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import {
  adapterOption,
  kExampleOptions,
  kLabelOptions,
  kModelOptions,
  kTaskOption,
} from './train_options.ts';

/** The number of examples in a batch where the user gives none. */
export const kEvalBatchSize = 8;

export const kEvaluateOptions = {
  ...kTaskOption,
  ...kModelOptions,
  ...group('Model and data', {
    adapter: adapterOption('the adapter to load onto the model'),
    data: filePath({
      placeholder: 'file',
      help: 'held-out data: .tsv, .csv, .parquet or JSON Lines',
      required: true,
      aliases: ['eval-data', 'validation-file', 'eval-file', 'test-file', 'dataset'],
    }),
    perDeviceEvalBatchSize: whole({
      least: 1,
      default: kEvalBatchSize,
      help: 'examples per batch; the result does not depend on it',
      aliases: ['batch-size', 'eval-batch-size'],
    }),
  }),
  ...group('Output', { json: onOff({ help: 'print the result as JSON, with every example' }) }),
  ...kExampleOptions,
  ...kLabelOptions,
};

export type EvaluateSettings = ValuesOf<typeof kEvaluateOptions>;

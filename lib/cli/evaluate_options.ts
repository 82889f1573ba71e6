/** The options of `balora evaluate`. */
import type { OptionRow, OptionValues } from './option_table.ts';
import { integer, onOff, text } from './option_types.ts';
import { kExampleOptions, kLabelOptions, kModelOptions, kTaskOption } from './train_options.ts';

const kGroup = 'Model, data and output';

export const kEvaluateOptions = {
  ...kTaskOption,
  ...kModelOptions,
  adapter: { type: text('folder'), help: 'a PEFT folder to put on the model', group: kGroup },
  data: {
    type: text('file'),
    help: 'held-out data: .tsv, .csv, .parquet or JSON Lines',
    group: kGroup,
    required: true,
  },
  json: { type: onOff(), help: 'the result as JSON, with every example', group: kGroup },
  perDeviceEvalBatchSize: {
    type: integer(1),
    help: 'examples of a batch; the result does not depend on it',
    group: kGroup,
  },
  ...kExampleOptions,
  ...kLabelOptions,
} satisfies Record<string, OptionRow>;

export type EvaluateSettings = OptionValues<typeof kEvaluateOptions>;

/** Examples of a batch where nothing is said. */
export const kEvalBatchSize = 8;

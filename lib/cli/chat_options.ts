/** The options of `balora chat`. */
import { generationOptions } from '../generate/options.ts';
import { text } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import { kAdapterOption } from './generate_options.ts';
import { kModelOptions } from './train_options.ts';

const {
  numReturnSequences: _,
  batchSize: __,
  logprobs: ___,
  skipSpecialTokens: ____,
  ...kAnswerOptions
} = generationOptions;

export const kChatOptions = {
  ...kModelOptions,
  ...kAdapterOption,
  ...group('Model and data', {
    system: text({
      help: 'text of the system message',
      aliases: ['system-prompt', 'system-message'],
    }),
  }),
  ...kAnswerOptions,
};

/** The names of the options that are those of the answers. */
export const kAnswerKeys = Object.keys(kAnswerOptions) as (keyof typeof kAnswerOptions)[];

export type ChatCommandSettings = ValuesOf<typeof kChatOptions>;

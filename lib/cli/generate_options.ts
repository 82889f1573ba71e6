/** The options of `balora generate`. */
import { generationOptions } from '../generate/options.ts';
import { onOff, template, text } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import { adapterOption, kModelOptions, kTaskOption } from './train_options.ts';

/** The option that names the adapter of a model that generates. */
export const kAdapterOption = group('Model and data', {
  adapter: adapterOption('the adapter to load onto the model'),
});

export const kGenerateOptions = {
  ...kTaskOption,
  ...kModelOptions,
  ...kAdapterOption,
  ...group('Model and data', {
    prompt: text({
      help: 'the text that the model answers, or with --raw continues',
      required: true,
      aliases: ['text', 'input'],
    }),
    promptTemplate: template({
      help: "what the prompt is put into, as in training: chat (default where the model has a chat template), alpaca (train's default for causal language models), none, text with one {field}, or a file of such text",
      aliases: ['template'],
    }),
    raw: onOff({
      help: "continue the prompt as it is, without the model's chat template",
      aliases: ['ignore-chat-template'],
    }),
  }),
  ...generationOptions,
  ...group('Output', {
    json: onOff({
      help: 'print the texts as JSON, with tokens and speeds, once they are complete',
    }),
  }),
};

export type GenerateCommandSettings = ValuesOf<typeof kGenerateOptions>;

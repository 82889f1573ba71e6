/** The options of `balora generate`. */
import { generationOptions } from '../generate/options.ts';
import { filePath, onOff, text } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import { kModelOptions, kTaskOption } from './train_options.ts';

/** The option that names the adapter of a model that generates. */
export const kAdapterOption = group('Model and data', {
  adapter: filePath({
    placeholder: 'folder',
    help: 'a PEFT folder to load onto the model',
    aliases: ['adapter-name-or-path', 'adapter-path', 'lora-path'],
  }),
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

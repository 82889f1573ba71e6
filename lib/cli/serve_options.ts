/** The options of `balora serve`. */
import { namedPaths, text, whole } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import { kModelOptions, kTaskOption } from './train_options.ts';

export const kServeOptions = {
  ...kTaskOption,
  ...kModelOptions,
  ...group('Model and data', {
    adapter: namedPaths({
      placeholder: 'name=folder',
      help: 'a PEFT folder to serve under a name of its own; may be given several times',
      aliases: ['adapter-name-or-path', 'adapter-path', 'lora-path', 'lora-modules'],
    }),
    servedModelName: text({
      placeholder: 'name',
      help: 'name of the model itself; default: the last part of --model',
      aliases: ['alias'],
    }),
  }),
  ...group('Server', {
    host: text({
      placeholder: 'address',
      default: '127.0.0.1',
      help: 'address to listen at; other machines reach 0.0.0.0, which needs a key',
      aliases: ['bind', 'hostname', 'listen'],
    }),
    port: whole({
      least: 0,
      most: 65535,
      default: 8080,
      help: 'port to listen at; 0: a free one',
    }),
    apiKey: text({
      placeholder: 'key',
      help: 'key that requests must have; better in the environment, as BALORA_API_KEY',
      aliases: ['token'],
    }),
    maxConcurrent: whole({
      least: 1,
      default: 4,
      help: 'requests that are answered at the same time',
      aliases: ['parallel', 'max-num-seqs', 'concurrency', 'decode-concurrency'],
    }),
    maxWaiting: whole({
      least: 0,
      default: 16,
      help: 'requests that wait for that; more are refused with status 429',
      aliases: ['max-queue', 'queue-size'],
    }),
    maxPromptTokens: whole({
      least: 1,
      help: "tokens of all prompts of a request together; default: four times the model's context",
      aliases: ['max-input-tokens', 'max-total-tokens'],
    }),
    grace: whole({
      least: 0,
      // A timer of more milliseconds than 32 bits hold is over at once.
      most: 2_147_483,
      default: 1,
      help: 'seconds that answers have to end after SIGTERM or Ctrl-C',
      aliases: ['shutdown-timeout', 'timeout-graceful-shutdown'],
    }),
  }),
};

export type ServeCommandSettings = ValuesOf<typeof kServeOptions>;

/**
 * The options of text generation, one entry each; see lib/options/option.ts. Those of the logits processors are declared with these
 * (processors/).
 */
import { z } from 'zod';
import { indices, onOff, value, whole } from '../options/kinds.ts';
import {
  type Check,
  checkTogether,
  group,
  type InputOf,
  type ResolvedOf,
  resolveTable,
} from '../options/option.ts';
import { processorOptions, samplingOptions } from './processors/list.ts';

const lengthOptions = {
  /**
   * Largest number of new tokens of a sequence. It gets fewer where the model's context ends before. Default 256.
   */
  maxNewTokens: whole({
    least: 1,
    default: 256,
    help: 'new tokens at most',
    aliases: ['max-tokens', 'max-length', 'n-predict', 'num-predict'],
  }),
};

const drawOptions = {
  /**
   * Whether tokens are drawn by their probabilities; otherwise each token is the most likely one. Default: true if one of
   * temperature, topK, topP and minP is given, and temperature is not 0.
   */
  doSample: value<boolean, null>({
    schema: z.boolean(),
    default: null,
    wanted: 'true or false',
    placeholder: null,
    help: 'draw tokens by their probabilities; default: with a temperature, top-k, top-p or min-p',
    aliases: ['sample'],
    fromText: (given) => (given === 'true' ? true : given === 'false' ? false : given),
  }),
};

const seedOption = {
  /** Seed of the draws, each of which is a function of the seed, the sequence and the position. Default 42. */
  seed: whole({ least: 0, default: 42, help: 'seed of the draws', aliases: ['random-seed'] }),
};

const endOptions = {
  /**
   * Texts before which the text of a sequence ends. They may begin and end within tokens. A text that is a special token ends
   * it by that token. Default none.
   */
  stopStrings: value<string | readonly string[], readonly string[], readonly string[]>({
    schema: z.union([stopString(), z.array(stopString()).readonly()]),
    default: [],
    wanted: 'a text that is not empty, or a list of them',
    placeholder: 'text',
    help: 'a text before which the text ends, or a JSON list of them',
    aliases: ['stop', 'stop-sequences', 'reverse-prompt'],
    fromText: listFromText,
    normalize: (given) => Object.freeze([...new Set(typeof given === 'string' ? [given] : given)]),
  }),
  /**
   * Ids that end a sequence; none: []. Default: eos_token_id of generation_config.json, else those of the model's
   * configuration and of the tokenizer.
   */
  eosTokenIds: indices({
    default: null,
    help: 'ids that end a text; default: those of the model',
    aliases: ['eos-token-id', 'stop-token-ids', 'extra-eos-token'],
  }),
};

const resultOptions = {
  /** Number of sequences for each prompt. Default 1. */
  numReturnSequences: whole({
    least: 1,
    default: 1,
    help: 'texts for each prompt',
    aliases: ['num-samples'],
  }),
  /** Whether special tokens, such as the end of a message, are left out of the text. Default true. */
  skipSpecialTokens: onOff({
    default: true,
    help: 'leave special tokens out of the text',
    helpOff: 'show special tokens in the text',
  }),
  /**
   * Number of most likely ids whose log-probabilities are returned beside that of each token; 0: that alone. They are natural
   * logarithms of the model's own distribution, before any processor. Default null: none are computed.
   */
  logprobs: whole<null>({
    least: 0,
    default: null,
    help: 'most likely ids whose log-probabilities are returned with each token',
    aliases: ['top-logprobs'],
  }),
  /**
   * Largest number of sequences that are decoded at the same time. On the CPU it changes nothing in the result of a model with a
   * cache; on a GPU, and for a model of one's own without a cache, it changes results by rounding only. Default 16.
   */
  batchSize: whole({
    least: 1,
    default: 16,
    help: 'sequences that are decoded at the same time',
    aliases: ['concurrency'],
  }),
};

// Named types: in a declaration file the doc comments of spread properties would be lost.
type Tables = typeof lengthOptions &
  typeof processorOptions &
  typeof drawOptions &
  typeof samplingOptions &
  typeof seedOption &
  typeof endOptions &
  typeof resultOptions;

/** All options of text generation but the model's, the prompts' and the signal. */
export const generationOptions: Tables = group('Generation', {
  ...lengthOptions,
  ...processorOptions,
  ...drawOptions,
  ...samplingOptions,
  ...seedOption,
  ...endOptions,
  ...resultOptions,
});

/** Options of text generation as a caller gives them. */
export interface GenerationSettings extends InputOf<typeof generationOptions> {}

/** Options of text generation with every default filled in, and the choice between greedy decoding and drawing made. */
export interface ResolvedSettings extends ResolvedOf<typeof generationOptions> {
  doSample: boolean;
}

/** The options that only make sense for tokens that are drawn. */
const kShaping = Object.keys(samplingOptions) as (keyof typeof samplingOptions)[];

/** The given options that shape a distribution to draw from. */
function shapingOf(given: GenerationSettings): string[] {
  if (given.temperature === 0) return [];
  return kShaping.filter((key) => given[key] !== undefined);
}

/** Checks that refuse combinations of options. */
export const generationChecks: readonly Check<GenerationSettings>[] = [
  {
    when: ({ doSample, temperature }) => doSample === true && temperature === 0,
    message: (_, name) =>
      `${name('temperature')} 0 is greedy decoding, which ${name('doSample')} excludes; leave one of them out`,
  },
  {
    when: (given) => given.doSample === false && shapingOf(given).length > 0,
    message: (given, name) =>
      `${shapingOf(given).map(name).join(', ')} would change nothing, since without ${name('doSample')} no token is drawn; leave ` +
      `${name('doSample')} out, or what needs it`,
  },
  {
    when: ({ minNewTokens = 0, maxNewTokens = generationOptions.maxNewTokens.default as number }) =>
      minNewTokens > maxNewTokens,
    message: (_, name) => `${name('minNewTokens')} must be at most ${name('maxNewTokens')}`,
  },
];

/**
 * Checks the options of a call and fills in the defaults.
 * @throws ArgumentError naming the option and its value
 */
export function resolveSettings(given: GenerationSettings): ResolvedSettings {
  const settings = resolveTable(generationOptions, given);
  checkTogether(generationChecks, given);
  return { ...settings, doSample: settings.doSample ?? shapingOf(given).length > 0 };
}

/** The list that a text of JSON is; any other text is returned as it is. */
function listFromText(text: string): unknown {
  if (!text.startsWith('[')) return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** The schema of a stop string: it must hold whole characters, so that a text that ends before it does, too. */
function stopString(): z.ZodType<string> {
  return z
    .string()
    .min(1)
    .refine((text) => !/\p{Cs}/u.test(text));
}

/**
 * The fields of a request that chat completions and completions have in common, as options of generate(). A field that the server does
 * not have is refused by its name, unless its value asks for nothing.
 */
import { randomInt } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { ArgumentError } from '../errors.ts';
import {
  type GenerationSettings,
  generationChecks,
  generationOptions,
} from '../generate/options.ts';
import { checkTogether, checkValue, type Option } from '../options/option.ts';
import type { ChatMessage } from '../text/chat_template.ts';
import { ApiError, wrongField } from './api_error.ts';

/** The body of a request. */
export type Fields = Readonly<Record<string, unknown>>;

/** The prompts of a request, of which each gives `n` choices. */
export type RequestInput =
  | { readonly messages: readonly ChatMessage[] }
  | { readonly prompt: readonly string[] }
  | { readonly ids: readonly (readonly number[])[] };

/** A request whose fields have been checked. */
export interface GenerationRequest {
  readonly model: string;
  readonly input: RequestInput;
  /** Options of generate(). */
  readonly settings: GenerationSettings;
  /** Whether the answer is sent as it comes. */
  readonly isStream: boolean;
  /** Whether a stream ends with the numbers of tokens. */
  readonly includesUsage: boolean;
}

/** The fields that are options of text generation. */
const kOptionOf = {
  max_tokens: 'maxNewTokens',
  max_completion_tokens: 'maxNewTokens',
  min_tokens: 'minNewTokens',
  temperature: 'temperature',
  top_p: 'topP',
  top_k: 'topK',
  min_p: 'minP',
  repetition_penalty: 'repetitionPenalty',
  seed: 'seed',
  stop: 'stopStrings',
  n: 'numReturnSequences',
} as const satisfies Record<string, keyof GenerationSettings>;

type OptionField = keyof typeof kOptionOf;
const kOptionFields = Object.keys(kOptionOf) as OptionField[];

/** The fields that are read elsewhere than in {@link kOptionOf}; `user` has no effect. */
const kOtherFields = ['model', 'stream', 'stream_options', 'user'];

/** Fields of OpenAI's API that the server does not have, and the values that ask for nothing besides null. */
const kNeutral: Readonly<Record<string, readonly unknown[]>> = {
  frequency_penalty: [0],
  presence_penalty: [0],
  logit_bias: [{}],
  tools: [[]],
  tool_choice: ['none', 'auto'],
  parallel_tool_calls: [true, false],
  functions: [[]],
  function_call: ['none', 'auto'],
  response_format: [{ type: 'text' }],
  modalities: [['text']],
  service_tier: ['auto', 'default'],
  store: [false],
  metadata: [{}],
  suffix: [''],
  echo: [false],
  best_of: [1],
};

/** Largest number of choices of a request: each takes memory for its keys and values. */
export const kMostChoices = 128;
/** Largest number of likeliest tokens that are listed beside each token. */
export const kMostLogprobs = 20;

/**
 * Reads the fields that both kinds of requests have.
 * @param own the fields that this kind has besides
 * @throws ApiError naming the field
 */
export function readRequest(
  fields: Fields,
  own: readonly string[],
): Omit<GenerationRequest, 'input'> {
  refuseOthers(fields, [...own, ...kOtherFields]);
  const { model } = fields;
  if (typeof model !== 'string' || model === '') {
    throw wrongField('model', 'model must be the name of a model that GET /v1/models lists');
  }
  const isStream = flagOf(fields, 'stream');
  const options = streamOptions(fields.stream_options ?? null, isStream);
  return { model, settings: settingsOf(fields), isStream, includesUsage: options };
}

function refuseOthers(fields: Fields, known: readonly string[]): void {
  for (const [name, value] of Object.entries(fields)) {
    if (known.includes(name) || Object.hasOwn(kOptionOf, name) || value === null) continue;
    const neutral = Object.hasOwn(kNeutral, name) ? (kNeutral[name] ?? []) : null;
    if (neutral?.some((one) => isDeepStrictEqual(one, value))) continue;
    throw new ApiError(
      neutral === null
        ? `unknown field ${name}; leave it out`
        : `${name} is not supported; leave it out`,
      { status: 400, param: name, code: neutral === null ? 'unknown_field' : 'unsupported_field' },
    );
  }
}

/** A field that is true or false; false without it. */
export function flagOf(fields: Fields, name: string): boolean {
  const value = fields[name] ?? false;
  if (typeof value === 'boolean') return value;
  throw wrongField(name, `${name} must be true or false`);
}

/** Whether stream_options ask for the numbers of tokens. */
function streamOptions(given: unknown, isStream: boolean): boolean {
  if (given === null) return false;
  if (!isStream) throw wrongField('stream_options', 'stream_options needs stream: true');
  if (typeof given !== 'object' || Array.isArray(given)) {
    throw wrongField('stream_options', 'stream_options must be an object');
  }
  const { include_usage: usage, ...others } = given as Fields;
  const [other] = Object.entries(others).filter(([, value]) => value !== null && value !== false);
  if (other !== undefined) {
    const param = `stream_options.${other[0]}`;
    throw new ApiError(`${param} is not supported; leave it out`, {
      ...{ status: 400, param, code: 'unsupported_field' },
    });
  }
  if (![undefined, null, true, false].includes(usage as boolean)) {
    const param = 'stream_options.include_usage';
    throw wrongField(param, `${param} must be true or false`);
  }
  return usage === true;
}

function settingsOf(fields: Fields): GenerationSettings {
  const given = kOptionFields.filter((name) => (fields[name] ?? null) !== null);
  if (given.includes('max_tokens') && given.includes('max_completion_tokens')) {
    throw wrongField(
      'max_completion_tokens',
      'max_tokens and max_completion_tokens are two names of one limit; give one of them',
    );
  }
  const settings: GenerationSettings = {};
  for (const name of given) {
    const key = kOptionOf[name];
    const option = generationOptions[key] as Option;
    settings[key] = named(name, () => checkValue(name, option, fields[name])) as never;
  }
  const spelled = (key: string): string => given.find((name) => kOptionOf[name] === key) ?? key;
  named(null, () => checkTogether(generationChecks, settings, { name: spelled }));
  if ((settings.numReturnSequences ?? 1) > kMostChoices) {
    throw wrongField('n', `n must be at most ${kMostChoices}`);
  }
  return drawn(settings);
}

/** Completes the settings of draws: OpenAI's API has no limit on the likeliest ids of its own, and draws anew for each request. */
function drawn(settings: GenerationSettings): GenerationSettings {
  const { temperature, topK, topP, minP } = settings;
  const isDrawn = temperature !== 0 && [temperature, topK, topP, minP].some((v) => v !== undefined);
  return isDrawn ? { topK: 0, seed: randomInt(2 ** 47), ...settings } : settings;
}

/** Runs a check of the library, whose errors are about a field. */
function named<T>(param: string | null, check: () => T): T {
  try {
    return check();
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new ApiError(error.message, { status: 400, param, code: 'invalid_value' });
  }
}

/** The number of likeliest tokens that a field asks for. */
export function logprobsOf(fields: Fields, name: string): number | null {
  const value = fields[name] ?? null;
  if (value === null) return null;
  if (Number.isInteger(value) && (value as number) >= 0 && (value as number) <= kMostLogprobs) {
    return value as number;
  }
  throw wrongField(name, `${name} must be a whole number from 0 to ${kMostLogprobs}`);
}

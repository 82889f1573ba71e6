/**
 * Reading of config.json. Keys that do not change what a model computes are ignored, and every other key must be understood: a model
 * that loads and computes something else is worse than one that does not load. So an unknown key is refused, unless the caller
 * names it in `ignoreKeys`.
 */
import { join } from 'node:path';
import { z } from 'zod';
import { FormatError, UnsupportedError } from '../errors.ts';
import { type Place, readOwnText } from '../io/own_files.ts';
import { kMaxConfigBytes, readText } from '../io/regular_file.ts';
import { shown } from '../shown.ts';

/** Keys of any transformers version for bookkeeping, labels and generation, which change nothing here. */
const kHarmlessKeys = new Set(
  `_name_or_path _commit_hash _attn_implementation _attn_implementation_autoset architectures auto_map dtype torch_dtype
   transformers_version transformers.js_config use_cache return_dict return_dict_in_generate output_attentions
   output_hidden_states output_scores torchscript tokenizer_class prefix task_specific_params finetuning_task id2label
   label2id num_labels problem_type initializer_range pad_token_id bos_token_id eos_token_id sep_token_id
   decoder_start_token_id forced_bos_token_id forced_eos_token_id begin_suppress_tokens suppress_tokens max_length
   min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
   repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
   num_return_sequences exponential_decay_length_penalty remove_invalid_values is_encoder_decoder is_decoder
   cross_attention_hidden_size add_cross_attention tie_encoder_decoder chunk_size_feed_forward pruned_heads
   is_llama_config cache_implementation model_type pretraining_tp unsloth_version unsloth_fixed output_past _num_labels
   sentence_transformers sbert_ce_default_activation_function`.split(/\s+/),
);

export interface ConfigOptions {
  /** Keys of config.json that the caller knows to change nothing. */
  ignoreKeys?: readonly string[];
}

/** Options of a reader of a configuration. */
export interface ParseConfigOptions extends ConfigOptions {
  /** Path for messages. */
  readonly path: string;
  /** Collects the numbers that the checkpoint's tensors bound, for {@link checkCounts}. */
  readonly counts?: Counts;
}

/** Numbers of a configuration by their keys: of layers, each of which has a tensor at least, and extents of tensors. */
export type Counts = Map<string, { readonly value: number; readonly of: 'layers' | 'extent' }>;

/** A number of layers. Each takes objects before the first weight is looked for, so an absurd number would take all memory. */
export const layerCount = z.int().positive().max(4096);
/** An extent of a tensor, or a number of parts of one: channels, heads, rows of a table. */
export const size = z.int().positive();
export const optionalSize = size.nullish();
/** Rows of a table that a model may lack; 0: it has none. */
export const optionalRows = z.int().nonnegative();
/** A number of positions that no tensor has to have. Ten times the longest context of any model. */
export const positionCount = z.int().positive().max(1e8);
/** A number of keys that a row attends to; 0: all. */
export const windowSize = z
  .int()
  .nonnegative()
  .max(2 ** 31 - 1);

/** Schemas of keys that change nothing in what a model computes, whatever their values: names with spaces between them. */
export function ignored(names: string): Readonly<Record<never, z.ZodType>> {
  return Object.fromEntries(names.split(' ').map((name) => [name, z.unknown().optional()]));
}

const kCounts = new Map<unknown, 'layers' | 'extent'>([
  [layerCount, 'layers'],
  [size, 'extent'],
  [optionalRows, 'extent'],
]);

/**
 * Checks a configuration's counts against the tensors of its checkpoint, before anything is made of them.
 * @throws FormatError naming the key, its value and what the tensors allow
 */
export function checkCounts(
  path: string,
  counts: Counts,
  shapes: ReadonlyMap<string, readonly number[]>,
): void {
  const extent = [...shapes.values()].flat().reduce((most, each) => Math.max(most, each), 0);
  for (const [key, { value, of }] of counts) {
    if (of === 'layers' && value > shapes.size) {
      throw configError(
        path,
        `${key} is ${value}, but the checkpoint has ${shapes.size} tensors in all`,
      );
    }
    if (of === 'extent' && value > extent) {
      throw configError(
        path,
        `${key} is ${value}, but the largest extent of a tensor in the checkpoint is ${extent}`,
      );
    }
  }
}

/** The error for a value of a configuration, which may be a file or a caller's object. */
export function configError(path: string, message: string): FormatError {
  return new FormatError(`${path}: ${message}`, {
    path,
    advice: 'correct the value, or fetch the file again',
  });
}

/**
 * Reads a file of one JSON object, as config.json.
 * @param at its path, or its place in a folder out of which no link in its place may lead
 * @param options advice: how to mend a file that is no such object, as the end of the message
 * @throws FormatError if it cannot be opened, is too large or is no object, NativeError if the disk fails
 */
export async function readConfigJson(
  at: string | Place,
  { advice }: { advice?: string } = {},
): Promise<Record<string, unknown>> {
  const path = typeof at === 'string' ? at : join(at.folder, at.path);
  const options = { path, ...(advice !== undefined && { advice }) };
  const limits = { limit: kMaxConfigBytes };
  const text = await (typeof at === 'string' ? readText(at, limits) : readOwnText(at, limits));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new FormatError(`${path}: is not JSON: ${(error as Error).message}`, {
      ...{ ...options, cause: error },
    });
  }
  if (json === null || typeof json !== 'object' || Array.isArray(json)) {
    throw new FormatError(`${path}: must hold a JSON object`, options);
  }
  return json as Record<string, unknown>;
}

/**
 * Checks a configuration and returns the keys that a model understands; others must be harmless or named in `ignoreKeys`.
 * @throws FormatError for a missing or wrong value, UnsupportedError for a key that is not understood
 */
export function parseConfig<S extends z.ZodRawShape>(
  shape: S,
  json: Record<string, unknown>,
  { path, ignoreKeys = [], counts }: ParseConfigOptions,
): z.infer<z.ZodObject<S>> {
  const unknown = Object.keys(json).filter(
    (key) =>
      !Object.hasOwn(shape, key) &&
      !kHarmlessKeys.has(key) &&
      !ignoreKeys.includes(key) &&
      json[key] !== null,
  );
  if (unknown.length > 0) {
    throw new UnsupportedError(
      `${path}: ${unknown.join(', ')} ${unknown.length > 1 ? 'are' : 'is'} not understood and may change the ` +
        'mathematics; pass ignoreKeys (--ignore-keys) if you know that it does not',
    );
  }
  const known = Object.fromEntries(
    Object.entries(json).filter(([key]) => !ignoreKeys.includes(key)),
  );
  const parsed = z.object(shape).safeParse(known);
  if (parsed.success) {
    for (const [key, schema] of Object.entries(shape)) {
      const value = known[key];
      const of = kCounts.get(schema) ?? kCounts.get(innermost(schema));
      if (of !== undefined && typeof value === 'number') counts?.set(key, { value, of });
    }
    return parsed.data;
  }
  const issue = parsed.error.issues[0] as z.core.$ZodIssue;
  const key = issue.path.join('.');
  const value = Object.hasOwn(json, key) ? json[key] : undefined;
  const found = value === undefined ? 'the file does not have it' : `the file has ${shown(value)}`;
  throw configError(path, `${key}: ${issue.message} (${found})`);
}

/** The schema that an optional one is of. */
function innermost(schema: unknown): unknown {
  let inner = schema;
  while (inner instanceof z.ZodOptional || inner instanceof z.ZodNullable) inner = inner.unwrap();
  return inner;
}

/** Reads model_type; `none` where there is none. @throws FormatError for one that is no text */
export function modelTypeOf(json: Readonly<Record<string, unknown>>, path: string): string {
  const { model_type: type = null } = json;
  if (type === null) return 'none';
  if (typeof type === 'string') return type;
  throw configError(path, `model_type must be a text, got ${shown(type)}`);
}

/** Reads initializer_range, the deviation of new weights. @throws FormatError for one that is no number, or below 0 */
export function initializerRange(json: Readonly<Record<string, unknown>>, path: string): number {
  const { initializer_range: value } = json;
  if (value === undefined || value === null) return kInitializerRange;
  if (typeof value === 'number' && Number.isFinite(value) && value >= 0) return value;
  throw configError(path, `initializer_range must be a number from 0 on, got ${shown(value)}`);
}

/** transformers' default of initializer_range. */
const kInitializerRange = 0.02;

/** Refuses values of keys that are not supported; null: the value is supported. @throws UnsupportedError naming key and value */
export function refuseValues(path: string, values: Readonly<Record<string, unknown>>): void {
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === undefined) continue;
    throw new UnsupportedError(
      `${path}: ${key} ${shown(value)} is not supported; choose a model without it`,
    );
  }
}

/** Keys that only configurations from GGUF files have, with a description of what the file holds. */
const kGgufOnly: Readonly<Record<string, string>> = {
  gguf_rope_factors: 'rope_freqs.weight',
  gguf_output_bias: 'a bias on some projections of the attention only',
};

/**
 * Makes the config.json of a model, from the keys that it was read from, in transformers 5's spelling.
 * @throws UnsupportedError for features that only GGUF files have
 */
export function configJsonOf(
  source: Readonly<Record<string, unknown>>,
  model: { modelType: string; architecture: string; dtypeName: string; tied: boolean },
): Record<string, unknown> {
  for (const [key, what] of Object.entries(kGgufOnly)) {
    if (!(key in source)) continue;
    throw new UnsupportedError(
      `the model was read from a GGUF file with ${what}, which config.json cannot say; save the adapter alone, or start from the ` +
        'safetensors of the model',
    );
  }
  const { torch_dtype: _, ...kept } = source;
  const json: Record<string, unknown> = {
    ...kept,
    architectures: [model.architecture],
    model_type: model.modelType,
    dtype: model.dtypeName,
    tie_word_embeddings: model.tied,
  };
  return Object.fromEntries(Object.entries(json).sort(([a], [b]) => (a < b ? -1 : 1)));
}

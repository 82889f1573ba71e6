/**
 * Rotary position embedding in all variants that models share: from the configuration (in transformers 4's or 5's spelling) to
 * frequencies, and from these to tables. Formulas: transformers' modeling_rope_utils.py. Angles are computed in f64 and the tables
 * rounded once.
 */
import { z } from 'zod';
import { ArgumentError, UnsupportedError } from '../errors.ts';
import type { RopeTables } from '../ops/index.ts';
import { shown } from '../shown.ts';
import { type DType, type Tensor, tensor, unscoped } from '../tensor.ts';
import { configError } from './config_keys.ts';
import type { ModelInputs } from './model.ts';

interface RopeBase {
  readonly theta: number;
  /** Number of channels of a head that are rotated. */
  readonly dim: number;
}
/** Configuration of a rotary embedding: its base frequency and its scaling for long contexts. */
export type RopeConfig = RopeBase &
  (
    | { readonly type: 'default' }
    | { readonly type: 'linear'; readonly factor: number }
    | { readonly type: 'dynamic'; readonly factor: number; readonly maxPositions: number }
    | {
        readonly type: 'llama3';
        readonly factor: number;
        readonly lowFreqFactor: number;
        readonly highFreqFactor: number;
        readonly originalMaxPositions: number;
      }
    | {
        readonly type: 'yarn';
        readonly factor: number;
        readonly originalMaxPositions: number;
        readonly betaFast: number;
        readonly betaSlow: number;
        /** Factor of cos and sin. */
        readonly attentionFactor: number;
        readonly truncate: boolean;
      }
    /** Every frequency divided by its own factor (GGUF's rope_freqs.weight). */
    | { readonly type: 'factors'; readonly factors: readonly number[] }
  );

const positive = z.number().positive();
const common = {
  rope_theta: positive.optional(),
  partial_rotary_factor: positive.max(1).optional(),
  type: z.string().optional(),
  rope_type: z.string(),
};
const kSchemas = {
  default: z.strictObject({ ...common, factor: z.literal(1).optional() }),
  linear: z.strictObject({ ...common, factor: positive }),
  dynamic: z.strictObject({
    ...common,
    factor: positive,
    original_max_position_embeddings: positive.optional(),
  }),
  llama3: z.strictObject({
    ...common,
    factor: positive,
    low_freq_factor: positive,
    high_freq_factor: positive,
    original_max_position_embeddings: positive,
  }),
  yarn: z.strictObject({
    ...common,
    factor: positive,
    original_max_position_embeddings: positive.optional(),
    beta_fast: positive.optional(),
    beta_slow: positive.optional(),
    attention_factor: positive.optional(),
    truncate: z.boolean().optional(),
  }),
} as const;

/** The keys of a config.json that this file reads. */
export interface RopeKeys {
  rope_parameters?: unknown;
  rope_scaling?: unknown;
  rope_theta?: number | undefined;
  /** Share of each head's channels that are rotated. Default 1. */
  partial_rotary_factor?: number | null | undefined;
  max_position_embeddings: number;
}

/**
 * Reads `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (transformers 4).
 * @param headDim channels of a head
 * @throws FormatError for values that are missing or wrong, UnsupportedError for a type or key that is not understood
 */
export function ropeConfig(keys: RopeKeys, headDim: number, path: string): RopeConfig {
  const given = (keys.rope_parameters ?? keys.rope_scaling ?? {}) as Record<string, unknown>;
  const field = keys.rope_parameters != null ? 'rope_parameters' : 'rope_scaling';
  if (typeof given !== 'object' || Array.isArray(given)) {
    throw configError(path, `${field} must be an object`);
  }
  const type = given.rope_type ?? given.type ?? 'default';
  if (typeof type !== 'string') {
    throw configError(path, `${field}.rope_type must be a text, got ${shown(type)}`);
  }
  const schema = Object.hasOwn(kSchemas, type)
    ? kSchemas[type as keyof typeof kSchemas]
    : undefined;
  if (schema === undefined) {
    const known = Object.keys(kSchemas).join(', ');
    throw new UnsupportedError(
      `${path}: ${field}.rope_type ${shown(type)} is not supported; known: ${known}`,
    );
  }
  const parsed = schema.safeParse({ ...given, rope_type: type });
  if (!parsed.success) throw ropeError(parsed.error, field, path);
  const share = parsed.data.partial_rotary_factor ?? keys.partial_rotary_factor ?? 1;
  const dim = Math.trunc(headDim * share);
  if (dim < 2 || dim % 2 !== 0) {
    throw configError(
      path,
      `partial_rotary_factor ${share} rotates ${dim} of a head's ${headDim} channels, which must be even and >= 2`,
    );
  }
  const base = {
    theta: (given.rope_theta as number | undefined) ?? keys.rope_theta ?? 10_000,
    dim,
  };
  return ropeOfType({ ...parsed.data, rope_type: type }, base, keys.max_position_embeddings);
}

function ropeError(error: z.ZodError, field: string, path: string): Error {
  const issue = error.issues[0] as z.core.$ZodIssue;
  if (issue.code === 'unrecognized_keys') {
    return new UnsupportedError(
      `${path}: ${field}.${issue.keys.join(', ')} is not understood and may change the mathematics; remove the key if you know that it does not`,
    );
  }
  return configError(path, `${field}.${issue.path.join('.')}: ${issue.message}`);
}

/** The factor of cos and sin in YaRN, unless the configuration has its own. */
export function yarnAttentionFactor(factor: number): number {
  return factor > 1 ? 0.1 * Math.log(factor) + 1 : 1;
}

function ropeOfType(
  values: Record<string, unknown>,
  base: RopeBase,
  maxPositions: number,
): RopeConfig {
  const number = (key: string, fallback?: number): number => (values[key] as number) ?? fallback;
  const factor = number('factor', 1);
  const originalMaxPositions = number('original_max_position_embeddings', maxPositions);
  switch (values.rope_type) {
    case 'linear':
      return { ...base, type: 'linear', factor };
    case 'dynamic':
      return { ...base, type: 'dynamic', factor, maxPositions: originalMaxPositions };
    case 'llama3':
      return {
        ...base,
        type: 'llama3',
        factor,
        lowFreqFactor: number('low_freq_factor'),
        highFreqFactor: number('high_freq_factor'),
        originalMaxPositions,
      };
    case 'yarn':
      return {
        ...base,
        type: 'yarn',
        factor,
        originalMaxPositions,
        betaFast: number('beta_fast', 32),
        betaSlow: number('beta_slow', 1),
        attentionFactor: number('attention_factor', yarnAttentionFactor(factor)),
        truncate: values.truncate !== false,
      };
    default:
      return { ...base, type: 'default' };
  }
}

/**
 * The rotary embedding with a factor for every frequency (GGUF's rope_freqs.weight).
 * @throws UnsupportedError where the two cannot be combined
 */
export function ropeWithFactors(
  rope: RopeConfig,
  factors: readonly number[],
  path: string,
): RopeConfig {
  if (rope.type !== 'default' || factors.length !== rope.dim / 2) {
    throw new UnsupportedError(
      `${path}: ${factors.length} factors of frequencies do not go with rope type ${rope.type} of ${rope.dim} channels; convert the ` +
        'model to GGUF again, or load its safetensors',
    );
  }
  return { type: 'factors', theta: rope.theta, dim: rope.dim, factors };
}

/**
 * Rotation per position, in radians, of each of the dim/2 pairs of channels.
 * @param length longest sequence of the batch (position + 1): `dynamic` depends on it
 */
export function ropeFrequencies(config: RopeConfig, length: number): Float64Array {
  const half = config.dim / 2;
  const frequencies = (theta: number): Float64Array =>
    Float64Array.from({ length: half }, (_, i) => theta ** (-i / half));
  const plain = frequencies(config.theta);
  switch (config.type) {
    case 'linear':
      return plain.map((frequency) => frequency / config.factor);
    case 'dynamic': {
      const growth =
        (config.factor * scaledLength(config, length)) / config.maxPositions - (config.factor - 1);
      return frequencies(config.theta * growth ** (config.dim / (config.dim - 2)));
    }
    case 'llama3':
      return plain.map((frequency) => llama3Frequency(frequency, config));
    case 'yarn':
      return yarnFrequencies(plain, config);
    case 'factors':
      return plain.map((frequency, i) => frequency / (config.factors[i] as number));
    default:
      return plain;
  }
}

/** A frequency of llama3: waves longer than the original context are lengthened, short ones kept, those between interpolated. */
function llama3Frequency(frequency: number, config: RopeConfig & { type: 'llama3' }): number {
  const { factor, lowFreqFactor: low, highFreqFactor: high, originalMaxPositions } = config;
  const rotations = (originalMaxPositions * frequency) / (2 * Math.PI);
  if (rotations < low) return frequency / factor;
  if (rotations > high) return frequency;
  const smooth = (rotations - low) / (high - low);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}

/** The frequencies of yarn: interpolated above a ramp between two channels, unchanged below it (Peng et al. 2023). */
function yarnFrequencies(plain: Float64Array, config: RopeConfig & { type: 'yarn' }): Float64Array {
  const { dim, theta, factor, originalMaxPositions, betaFast, betaSlow, truncate } = config;
  const channel = (rotations: number): number =>
    (dim * Math.log(originalMaxPositions / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
  let [low, high] = [channel(betaFast), channel(betaSlow)];
  if (truncate) [low, high] = [Math.floor(low), Math.ceil(high)];
  low = Math.max(low, 0);
  high = Math.min(high, dim - 1);
  if (low === high) high += 0.001;
  return plain.map((frequency, i) => {
    const ramp = Math.min(1, Math.max(0, (i - low) / (high - low)));
    return (frequency / factor) * ramp + frequency * (1 - ramp);
  });
}

/** Length of sequences up to which no row depends on the others in its batch; see `dynamic` in {@link ropeFrequencies}. */
export function steadyLength(ropes: readonly RopeConfig[]): number {
  return ropes.reduce(
    (least, rope) => (rope.type === 'dynamic' ? Math.min(least, rope.maxPositions) : least),
    Number.POSITIVE_INFINITY,
  );
}

/** Values of one table: 1 GiB in f32, for 4 million positions of heads of 128 channels. */
const kMaxTableValues = 2 ** 28;

/** Tables of a rotary embedding, and the row of them that each row of a forward reads; left out: that of its position. */
export interface RowTables extends RopeTables {
  readonly rows?: Tensor; // (R) i32
}

/** The tables of a rotary embedding, which the layers of a model share; they grow with the longest sequence so far. */
export class RopeCache {
  #tables: RopeTables | null = null;
  #rows = 0;
  #length = 0;

  constructor(
    readonly config: RopeConfig,
    /** f32, or f64 beside f64 activations. */
    private readonly dtype: DType,
  ) {}

  /** Tables for positions below `length`. @throws ArgumentError if they would be too large */
  tables(length: number): RopeTables {
    const { config } = this;
    const most = Math.floor((2 * kMaxTableValues) / config.dim);
    if (length > most) {
      throw new ArgumentError(
        `forward: the rotary embedding's tables for position ${length - 1} would be too large; give positions below ${most}`,
      );
    }
    const stale =
      config.type === 'dynamic' &&
      scaledLength(config, length) !== scaledLength(config, this.#length);
    if (this.#tables !== null && length <= this.#rows && !stale) return this.#tables;
    this.dispose();
    this.#rows = Math.min(2 ** Math.ceil(Math.log2(Math.max(length, 128))), most);
    this.#length = length;
    this.#tables = unscoped(() =>
      makeTables(config, { length, rows: this.#rows, dtype: this.dtype }),
    );
    return this.#tables;
  }

  /**
   * Tables for the rows of a forward. The frequencies of `dynamic` depend on the length of a sequence: rows that continue sequences
   * of a cache get those of their own sequence's length now, as if it were alone, and earlier keys keep what they had.
   */
  tablesOf({ length, cached }: Pick<ModelInputs, 'length' | 'cached'>): RowTables {
    const { config } = this;
    if (cached === undefined || config.type !== 'dynamic' || length <= config.maxPositions) {
      return this.tables(length);
    }
    const { positions, lengths } = cached;
    const rows = positions.map((_, row) => row);
    const ofLength = new Map<number, Float64Array>();
    for (const length of new Set(lengths)) ofLength.set(length, ropeFrequencies(config, length));
    return {
      ...rotations(
        { config, dtype: this.dtype },
        (row) => ({
          position: positions[row] as number,
          frequencies: ofLength.get(lengths[row] as number) as Float64Array,
        }),
        rows.length,
      ),
      rows: tensor(rows),
    };
  }

  dispose(): void {
    this.#tables?.cos.dispose();
    this.#tables?.sin.dispose();
    this.#tables = null;
  }
}

/** The length that the frequencies of `dynamic` are scaled to. */
function scaledLength(config: RopeConfig & { type: 'dynamic' }, length: number): number {
  return Math.max(length, config.maxPositions);
}

function makeTables(
  config: RopeConfig,
  { length, rows, dtype }: { length: number; rows: number; dtype: DType },
): RopeTables {
  const frequencies = ropeFrequencies(config, length);
  return rotations({ config, dtype }, (position) => ({ position, frequencies }), rows);
}

/** Cosines and sines of the angles at a number of positions, each with its frequencies. */
function rotations(
  { config, dtype }: { config: RopeConfig; dtype: DType },
  at: (row: number) => { position: number; frequencies: Float64Array },
  rows: number,
): RopeTables {
  const half = config.dim / 2;
  const scale = config.type === 'yarn' ? config.attentionFactor : 1;
  const table = () =>
    dtype === 'f64' ? new Float64Array(rows * half) : new Float32Array(rows * half);
  const [cos, sin] = [table(), table()];
  for (let row = 0; row < rows; ++row) {
    const { position, frequencies } = at(row);
    for (let i = 0; i < half; ++i) {
      const angle = position * (frequencies[i] as number);
      cos[row * half + i] = scale * Math.cos(angle);
      sin[row * half + i] = scale * Math.sin(angle);
    }
  }
  const shape = [rows, half];
  return { cos: tensor(cos, { shape }), sin: tensor(sin, { shape }) };
}

/** The metadata tokenizer.ggml.* of a GGUF file: values with their types checked, tokens and their types, special tokens. */
import { FormatError } from '../errors.ts';
import { shown } from '../shown.ts';

/** The metadata of a GGUF file, by key. */
export type GgufMetadata = Readonly<Record<string, unknown>> | ReadonlyMap<string, unknown>;

/** Values of tokenizer.ggml.token_type. */
export const TokenType = {
  normal: 1,
  unknown: 2,
  control: 3,
  userDefined: 4,
  unused: 5,
  byte: 6,
} as const;

/** A special token. */
export interface Special {
  token: string;
  id: number;
}

/** Special tokens by their names in tokenizer_config.json, with the keys of their ids ("seperator" is the format's spelling). */
const kRoles = {
  bos_token: 'tokenizer.ggml.bos_token_id',
  eos_token: 'tokenizer.ggml.eos_token_id',
  unk_token: 'tokenizer.ggml.unknown_token_id',
  sep_token: 'tokenizer.ggml.seperator_token_id',
  pad_token: 'tokenizer.ggml.padding_token_id',
  cls_token: 'tokenizer.ggml.cls_token_id',
  mask_token: 'tokenizer.ggml.mask_token_id',
} as const;
export type Role = keyof typeof kRoles;

export class Metadata {
  constructor(private readonly source: GgufMetadata) {}

  raw(key: string): unknown {
    const { source } = this;
    return isMap(source) ? source.get(key) : source[key];
  }

  string(key: string): string | undefined {
    const value = this.raw(key);
    if (value === undefined || typeof value === 'string') return value;
    throw new FormatError(`gguf: ${key} must be a string, got ${typeof value}`);
  }

  boolean(key: string): boolean | undefined {
    const value = this.raw(key);
    if (value === undefined || typeof value === 'boolean') return value;
    throw new FormatError(`gguf: ${key} must be a boolean, got ${typeof value}`);
  }

  integer(key: string): number | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    const number = typeof value === 'bigint' ? Number(value) : value;
    if (typeof number === 'number' && Number.isSafeInteger(number)) return number;
    throw new FormatError(`gguf: ${key} must be an integer, got ${shown(value)}`);
  }

  strings(key: string): readonly string[] | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    if (!Array.isArray(value)) throw notAnArray(key);
    const bad = value.findIndex((item) => typeof item !== 'string');
    if (bad >= 0) throw new FormatError(`gguf: ${key}[${bad}] must be a string`);
    return value;
  }

  /** An array of numbers, which a file's own metadata has as a typed array. */
  numbers(key: string): NumberArray | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    if (value instanceof BigInt64Array || value instanceof BigUint64Array) {
      return Float64Array.from(value, Number);
    }
    if (ArrayBuffer.isView(value)) return value as Float64Array;
    if (!Array.isArray(value)) throw notAnArray(key);
    const bad = value.findIndex((item) => typeof item !== 'number');
    if (bad >= 0) throw new FormatError(`gguf: ${key}[${bad}] must be a number`);
    return value;
  }
}

/** Numbers by index, without copying a typed array. */
interface NumberArray extends ArrayLike<number> {
  findIndex(predicate: (value: number) => boolean): number;
}

function isMap(source: GgufMetadata): source is ReadonlyMap<string, unknown> {
  return typeof (source as { get?: unknown }).get === 'function';
}

function notAnArray(key: string): FormatError {
  return new FormatError(`gguf: ${key} must be an array`);
}

/** The error for a vocabulary that lacks what a tokenizer is built from; a tokenizer.json beside the file replaces it. */
export function incomplete(what: string): FormatError {
  return new FormatError(`gguf: ${what}`, {
    advice: "put the model's tokenizer.json beside the file",
  });
}

/** The vocabulary of a GGUF file, unchanged. */
export class GgufVocabulary {
  /** The tokens by id, (V). */
  readonly tokens: readonly string[];
  readonly #types: NumberArray;

  /** Reads the vocabulary. @throws FormatError if there is none, or its lists differ in length */
  constructor(readonly metadata: Metadata) {
    const tokens = metadata.strings('tokenizer.ggml.tokens');
    if (!tokens?.length) throw new FormatError('gguf: tokenizer.ggml.tokens is missing or empty');
    this.tokens = tokens;
    this.#types = this.#parallel('token_type') ?? [];
  }

  /** The type of a token, see {@link TokenType}; normal where the file has no types. */
  type(id: number): number {
    return this.#types[id] ?? TokenType.normal;
  }

  /** Whether a token is a control token or the unknown token. */
  isSpecial(id: number): boolean {
    const type = this.type(id);
    return type === TokenType.control || type === TokenType.unknown;
  }

  /**
   * The tokens' scores, (V).
   * @throws FormatError if they are missing or not finite
   */
  scores(): NumberArray {
    const scores = this.#parallel('scores');
    if (scores === undefined) throw incomplete('tokenizer.ggml.scores is missing');
    const bad = scores.findIndex((score) => !Number.isFinite(score));
    if (bad < 0) return scores;
    throw incomplete(`tokenizer.ggml.scores[${bad}] must be finite, got ${scores[bad]}`);
  }

  /**
   * The special token of a role, or null.
   * @param byDefault the id to use if the file has none
   * @throws FormatError for an id outside the vocabulary
   */
  special(role: Role, byDefault?: number): Special | null {
    const key = kRoles[role];
    const stated = this.metadata.integer(key);
    const id = stated ?? byDefault;
    if (id === undefined) return null;
    const token = this.tokens[id];
    if (token !== undefined) return { token, id };
    if (stated === undefined) return null;
    throw new FormatError(
      `gguf: ${key} = ${id} is outside the vocabulary of ${this.tokens.length}`,
    );
  }

  /** The special token of a role. @throws FormatError naming the key if the file does not have it */
  required(role: Role, byDefault?: number): Special {
    const special = this.special(role, byDefault);
    if (special !== null) return special;
    throw incomplete(`${kRoles[role]} is missing`);
  }

  #parallel(name: string): NumberArray | undefined {
    const list = this.metadata.numbers(`tokenizer.ggml.${name}`);
    if (list === undefined || list.length === this.tokens.length) return list;
    throw new FormatError(
      `gguf: tokenizer.ggml.${name} has ${list.length} entries, tokens ${this.tokens.length}`,
    );
  }
}

/** A tokenizer_config.json with the special tokens and the chat template. */
export function tokenizerConfigOf(
  metadata: Metadata,
  specials: Partial<Record<Role, Special | null>>,
): Record<string, unknown> {
  const config: Record<string, unknown> = { clean_up_tokenization_spaces: false };
  for (const [role, special] of Object.entries(specials)) if (special) config[role] = special.token;
  const template = metadata.string('tokenizer.chat_template');
  if (template !== undefined) config.chat_template = template;
  return config;
}

/** A tokenizer_config.json for a tokenizer.json that lies beside a GGUF file. */
export function ggufTokenizerConfig(source: GgufMetadata): Record<string, unknown> {
  const metadata = new Metadata(source);
  if (metadata.raw('tokenizer.ggml.tokens') === undefined) return tokenizerConfigOf(metadata, {});
  return tokenizerConfigOf(metadata, specialsOf(new GgufVocabulary(metadata)));
}

/** The special tokens by role; null for those that the file does not name. */
export function specialsOf(
  vocabulary: GgufVocabulary,
  defaults: Partial<Record<Role, number>> = {},
): Partial<Record<Role, Special | null>> {
  const roles = Object.keys(kRoles) as Role[];
  return Object.fromEntries(roles.map((role) => [role, vocabulary.special(role, defaults[role])]));
}

/**
 * The fields with which tokenizer.json begins. Special and user-defined tokens are recognised before everything else.
 * @param tokens the texts of the tokens. Default: those of the file
 * @param isSpecial whether a token is special. Default: as its type says
 * @param strips the white space that a token strips. Default: none
 */
export function fileHead(
  vocabulary: GgufVocabulary,
  {
    tokens = vocabulary.tokens,
    isSpecial = (id: number): boolean => vocabulary.isSpecial(id),
    strips = (_token: string, _id: number): { lstrip?: boolean; rstrip?: boolean } => ({}),
  } = {},
): Record<string, unknown> {
  const added = tokens.flatMap((content, id) => {
    const special = isSpecial(id);
    if (!special && vocabulary.type(id) !== TokenType.userDefined) return [];
    const plain = { normalized: false, single_word: false, lstrip: false, rstrip: false };
    return [{ id, content, special, ...plain, ...strips(content, id) }];
  });
  return { version: '1.0', truncation: null, padding: null, added_tokens: added };
}

/** The fields of a BPE model that no GGUF file states. */
export const kBpe = {
  type: 'BPE',
  dropout: null,
  unk_token: null as string | null,
  continuing_subword_prefix: null,
  end_of_word_suffix: null,
};

/**
 * The post-processor that makes `bos A eos` and `bos A eos sep B eos`, of those of these tokens that tokenizer.ggml.add_bos_token and
 * similar keys ask for; null if no token is added.
 * @throws FormatError if a token is to be added that the vocabulary does not name
 */
export function postProcessor(
  { metadata }: GgufVocabulary,
  specials: Partial<Record<Role, Special | null>>,
  byDefault: { bos: boolean; eos: boolean; sep: boolean },
): Record<string, unknown> | null {
  const added = (which: keyof typeof byDefault): Special | null => {
    if (!(metadata.boolean(`tokenizer.ggml.add_${which}_token`) ?? byDefault[which])) return null;
    const special = specials[`${which}_token`];
    if (special) return special;
    throw incomplete(`${which} is to be added, but ${kRoles[`${which}_token`]} is missing`);
  };
  const [bos, eos, sep] = [added('bos'), added('eos'), added('sep')];
  const used = [bos, eos, sep].filter((special) => special !== null);
  if (used.length === 0) return null;
  const item = (special: Special | null) =>
    special === null ? [] : [{ SpecialToken: { id: special.token, type_id: 0 } }];
  const a = { Sequence: { id: 'A', type_id: 0 } };
  const b = { Sequence: { id: 'B', type_id: 0 } };
  return {
    type: 'TemplateProcessing',
    single: [...item(bos), a, ...item(eos)],
    pair: [...item(bos), a, ...(sep === null ? [] : [...item(eos), ...item(sep)]), b, ...item(eos)],
    special_tokens: Object.fromEntries(
      used.map(({ token, id }) => [token, { id: token, ids: [id], tokens: [token] }]),
    ),
  };
}

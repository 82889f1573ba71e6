/**
 * A tokenizer.json-like object built from the vocabulary inside a GGUF file (tokenizer.ggml.*). Only byte-level BPE
 * (tokenizer.ggml.model = "gpt2") is supported: the other kinds are refused by name, never guessed.
 */
import { FormatError, UnsupportedError } from '../errors.ts';
import { ggufPreTokenizer } from './pre_tokenizers.ts';

/** The metadata key/values of a GGUF file, as a plain object or a Map. */
export type GgufMetadata = Readonly<Record<string, unknown>> | ReadonlyMap<string, unknown>;

/** What `Tokenizer` is made of: the two files of a Hugging Face folder. */
export interface TokenizerParts {
  tokenizerJson: Record<string, unknown>;
  tokenizerConfig: Record<string, unknown>;
}

// Values of tokenizer.ggml.token_type.
const kControl = 3;
const kUserDefined = 4;

class Metadata {
  constructor(private readonly source: GgufMetadata) {}

  raw(key: string): unknown {
    return this.source instanceof Map
      ? this.source.get(key)
      : (this.source as Record<string, unknown>)[key];
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
    throw new FormatError(`gguf: ${key} must be an integer, got ${String(value)}`);
  }

  list<T extends string | number>(key: string, type: 'string' | 'number'): T[] | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    const list = ArrayBuffer.isView(value) ? Array.from(value as unknown as ArrayLike<T>) : value;
    if (!Array.isArray(list)) throw new FormatError(`gguf: ${key} must be an array`);
    const bad = list.findIndex((item) => typeof item !== type);
    if (bad >= 0) throw new FormatError(`gguf: ${key}[${bad}] must be a ${type}`);
    return list as T[];
  }
}

const kSpecialRoles = {
  bos_token: 'tokenizer.ggml.bos_token_id',
  eos_token: 'tokenizer.ggml.eos_token_id',
  unk_token: 'tokenizer.ggml.unknown_token_id',
  pad_token: 'tokenizer.ggml.padding_token_id',
} as const;

function readMerges(metadata: Metadata): [string, string][] {
  const merges = metadata.list<string>('tokenizer.ggml.merges', 'string');
  if (!merges) throw new FormatError('gguf: tokenizer.ggml.merges is missing');
  return merges.map((merge, i) => {
    const space = merge.indexOf(' ', 1);
    if (space < 0) {
      throw new FormatError(`gguf: tokenizer.ggml.merges[${i}] is not two tokens: '${merge}'`);
    }
    return [merge.slice(0, space), merge.slice(space + 1)];
  });
}

interface Special {
  token: string;
  id: number;
}

/** The post-processor that puts `bos` in front and `eos` behind; null when neither is wanted. */
function surround(bos: Special | null, eos: Special | null): Record<string, unknown> | null {
  if (bos === null && eos === null) return null;
  const item = (special: Special | null) =>
    special === null ? [] : [{ SpecialToken: { id: special.token, type_id: 0 } }];
  const a = { Sequence: { id: 'A', type_id: 0 } };
  const b = { Sequence: { id: 'B', type_id: 0 } };
  const used = [bos, eos].filter((special) => special !== null);
  return {
    type: 'TemplateProcessing',
    single: [...item(bos), a, ...item(eos)],
    pair: [...item(bos), a, b, ...item(eos)],
    special_tokens: Object.fromEntries(
      used.map(({ token, id }) => [token, { id: token, ids: [id], tokens: [token] }]),
    ),
  };
}

/** The roles of special tokens and the chat template, as a tokenizer_config.json would hold them. */
export function ggufTokenizerConfig(source: GgufMetadata): Record<string, unknown> {
  const metadata = new Metadata(source);
  return configOf(metadata, metadata.list<string>('tokenizer.ggml.tokens', 'string') ?? []);
}

function configOf(metadata: Metadata, tokens: readonly string[]): Record<string, unknown> {
  const tokenizerConfig: Record<string, unknown> = { clean_up_tokenization_spaces: false };
  for (const [role, key] of Object.entries(kSpecialRoles)) {
    const id = metadata.integer(key);
    if (id === undefined) continue;
    const token = tokens[id];
    if (token === undefined) {
      throw new FormatError(`gguf: ${key} = ${id} is outside the vocabulary of ${tokens.length}`);
    }
    tokenizerConfig[role] = token;
  }
  const template = metadata.string('tokenizer.chat_template');
  if (template !== undefined) tokenizerConfig.chat_template = template;
  return tokenizerConfig;
}

/**
 * Builds the tokenizer of a GGUF file.
 * @throws UnsupportedError for a vocabulary that is not byte-level BPE or a pre-tokenizer without a known pattern
 * @throws FormatError for missing or inconsistent metadata
 */
export function tokenizerFromGgufMetadata(source: GgufMetadata): TokenizerParts {
  const metadata = new Metadata(source);
  const model = metadata.string('tokenizer.ggml.model');
  if (model === undefined) throw new FormatError('gguf: the file has no tokenizer.ggml.model');
  if (model !== 'gpt2') {
    throw new UnsupportedError(
      `tokenizer: a GGUF vocabulary of kind '${model}' is not supported (only gpt2, byte-level BPE); ` +
        "put the model's tokenizer.json beside the file",
    );
  }
  const tokens = metadata.list<string>('tokenizer.ggml.tokens', 'string');
  if (!tokens?.length) throw new FormatError('gguf: tokenizer.ggml.tokens is missing or empty');
  const types = metadata.list<number>('tokenizer.ggml.token_type', 'number') ?? [];
  if (types.length !== 0 && types.length !== tokens.length) {
    throw new FormatError(
      `gguf: tokenizer.ggml.token_type has ${types.length} entries, tokens ${tokens.length}`,
    );
  }
  const pre = ggufPreTokenizer(metadata.string('tokenizer.ggml.pre') ?? 'default');

  const tokenizerConfig = configOf(metadata, tokens);
  const added = (which: 'bos' | 'eos', byDefault: boolean): Special | null => {
    if (!(metadata.boolean(`tokenizer.ggml.add_${which}_token`) ?? byDefault)) return null;
    const token = tokenizerConfig[`${which}_token`] as string | undefined;
    const id = metadata.integer(`tokenizer.ggml.${which}_token_id`);
    if (token !== undefined && id !== undefined) return { token, id };
    throw new FormatError(
      `gguf: ${which} is to be added, but tokenizer.ggml.${which}_token_id is missing`,
    );
  };
  const addedTokens = tokens.flatMap((content, id) => {
    const special = types[id] === kControl;
    return special || types[id] === kUserDefined
      ? [
          {
            ...{ id, content, special, normalized: false },
            ...{ single_word: false, lstrip: false, rstrip: false },
          },
        ]
      : [];
  });
  return {
    tokenizerConfig,
    tokenizerJson: {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: addedTokens,
      normalizer: null,
      pre_tokenizer: pre.preTokenizer,
      post_processor: surround(added('bos', pre.addBos), added('eos', false)),
      decoder: {
        type: 'ByteLevel',
        add_prefix_space: false,
        trim_offsets: false,
        use_regex: false,
      },
      model: {
        type: 'BPE',
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: pre.ignoreMerges,
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
        merges: readMerges(metadata),
      },
    },
  };
}

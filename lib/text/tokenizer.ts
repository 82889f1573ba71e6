/**
 * The tokenizer: text <-> ids, over @huggingface/tokenizers (pure JavaScript), from a tokenizer.json, a Hugging Face folder
 * or the vocabulary inside a GGUF file. Ids equal those of the source's own runtime: Hugging Face tokenizers for a
 * tokenizer.json, llama.cpp for a GGUF (see docs/decisions/tokenizer-missing-bytes.md for the one case where the two differ).
 * Truncation and padding that a tokenizer.json switches on are not applied; the data pipeline does the truncation.
 */
import { withDeadline } from '../deadline.ts';
import { ArgumentError, BaloraError, FormatError, fileError, UnsupportedError } from '../errors.ts';
import type { GgufTypedValue } from '../io/gguf_writer.ts';
import { type ResolveOptions, resolveTokenizer } from '../io/hub.ts';
import { type CallTable, checkArgument, checkCall, kCall, wholeNumber } from '../options/call.ts';
import { shown } from '../shown.ts';
import { bytesOfToken } from './byte_level.ts';
import {
  type ChatMessage,
  ChatTemplate,
  type ChatTemplateSource,
  type RenderOptions,
} from './chat_template.ts';
import { DecodeStream } from './decode_stream.ts';
import { repairDecoder } from './decoders.ts';
import { TextEncoding } from './encoder.ts';
import { applyFrame, type Encoding, type Frame, frameLength, readFrame } from './frame.ts';
import { type GgufMetadata, tokenizerFromGgufMetadata } from './gguf_vocabulary.ts';
import { isNfc, vocabularyMetadata } from './gguf_write.ts';
import { HfBpe, type HfModel, HfTokenizer, HfUnigram } from './hf_tokenizers.ts';
import { LongTexts } from './long_texts.ts';
import { hideSpecialTokens, mergeByRank, restoreScore, wordIdsOf } from './models.ts';
import { compileNormalizer } from './normalizers.ts';
import { preTokenizerSteps, unknownRegexes } from './pre_tokenizers.ts';
import { compilePreTokenizer } from './splits.ts';
import { GreedyMerges } from './spm_merges.ts';
import {
  type AddedToken,
  checkConsistency,
  checkTokenizerJson,
  malformed,
  ownIds,
  withType,
} from './tokenizer_checks.ts';
import { readJson, readTokenizerFiles, writeTokenizerFiles } from './tokenizer_files.ts';
import type { TokenizerOptions, TokenizerParts, TokenizerSetup } from './tokenizer_parts.ts';

type Json = Record<string, unknown>;

/** Options of {@link Tokenizer.encode}. */
export interface EncodeOptions {
  /** Whether to add the special tokens of the tokenizer's post-processor (BOS, [CLS] ... [SEP]). Default true. */
  addSpecialTokens?: boolean;
  /** Whether text such as `<|im_end|>` becomes the special token rather than ordinary characters. Default true. */
  parseSpecial?: boolean;
}

/** Options of {@link Tokenizer.encodePair}. */
export interface PairOptions extends EncodeOptions {
  /** Largest number of tokens, special ones included; the longer text is cut first (`longest_first`). Default: no limit. */
  maxLength?: number;
}

/** Options of {@link Tokenizer.decode}. */
export interface DecodeOptions {
  /** Whether to leave special tokens out of the text. Default false. */
  skipSpecialTokens?: boolean;
}

/** The kinds of the options. */
const kEncodeTable: CallTable<EncodeOptions> = {
  addSpecialTokens: kCall.boolean,
  parseSpecial: kCall.boolean,
};
const kPairTable: CallTable<PairOptions> = { ...kEncodeTable, maxLength: wholeNumber() };
const kDecodeTable: CallTable<DecodeOptions> = { skipSpecialTokens: kCall.boolean };

const kRoles = [
  'bos_token',
  'eos_token',
  'unk_token',
  'pad_token',
  'cls_token',
  'sep_token',
  'mask_token',
];

/** Conversion of text to ids and back, by a tokenizer.json or a GGUF file's own vocabulary. */
export class Tokenizer {
  /** Ids of special tokens; null where the model has none. */
  readonly bosId: number | null;
  readonly eosId: number | null;
  readonly padId: number | null;
  readonly unkId: number | null;
  readonly clsId: number | null;
  readonly sepId: number | null;
  readonly maskId: number | null;
  /** Number of ids: the largest id + 1. */
  readonly vocabSize: number;
  readonly specialIds: ReadonlySet<number>;
  /** The chat template; null if the model has none. */
  readonly chatTemplate: ChatTemplate | null;

  private readonly parts: TokenizerParts;
  private readonly tokenizer: HfTokenizer;
  /** The encoding that finds special tokens in a text, and the one for which they are text. */
  private readonly encoding: Readonly<Record<'special' | 'plain', TextEncoding>>;
  private readonly frame: Frame;
  private readonly cleanUp: boolean;
  private readonly byteLevel: boolean;
  /** Ids of the added tokens by their texts. */
  private readonly addedIds: ReadonlyMap<string, number>;
  /** Regular expressions of the file that may take for ever; with any, texts are converted within a deadline. */
  private readonly unknownRegexes: readonly string[];
  private readonly longTexts: LongTexts;

  private constructor({ tokenizerJson, tokenizerConfig, merges, missingBytes }: TokenizerOptions) {
    const addedTokens = (tokenizerJson.added_tokens ?? []) as AddedToken[];
    checkTokenizerJson(tokenizerJson, addedTokens, tokenizerConfig);
    if (missingBytes === 'join') checkConsistency(tokenizerJson.model as Json, addedTokens);
    this.parts = { tokenizerJson, tokenizerConfig, merges };
    const ranks = merges?.ranks ?? null;
    this.longTexts = new LongTexts({ tokenizerJson, tokenizerConfig, ranks, missingBytes });
    const steps = preTokenizerSteps(tokenizerJson.pre_tokenizer);
    const { normalizer, decoder } = tokenizerJson;
    this.unknownRegexes = unknownRegexes([normalizer, steps.splits, decoder]);
    const config = roleTokens(tokenizerConfig);
    const modelConfig = withType(tokenizerJson.model as Json);
    this.tokenizer = build(
      { decoder: decoder ?? null, added_tokens: addedTokens, model: modelConfig },
      tokenizerConfig.additional_special_tokens,
    );
    const { model } = this.tokenizer;
    this.addedIds = new Map(addedTokens.map(({ content, id }) => [content, id]));
    hideAddedTokens(model, modelConfig, this.addedIds);
    if (merges && model instanceof HfBpe) mergeByRank(model, merges);
    if (model instanceof HfUnigram) {
      restoreScore(model, modelConfig);
      hideSpecialTokens(model, addedTokens);
    }
    const encoderSteps = {
      normalize: compileNormalizer(normalizer),
      split: compilePreTokenizer(steps.splits),
      wordIds: wordIdsOf(model, { config: modelConfig, missingBytes, byteLevel: steps.byteLevel }),
    };
    const plain = addedTokens.filter((token) => !token.special);
    const length = addedTokens.reduce((sum, { content }) => sum + content.length, 0);
    // It normalizes the added tokens.
    this.encoding = this.inTime(length, () => ({
      special: new TextEncoding(encoderSteps, addedTokens),
      plain: new TextEncoding(encoderSteps, plain),
    }));

    const idOf = (role: string) => {
      const token = config[role];
      return token === undefined ? null : this.tokenId(token);
    };
    this.bosId = idOf('bos_token');
    this.eosId = idOf('eos_token');
    this.padId = idOf('pad_token');
    this.unkId = idOf('unk_token');
    this.clsId = idOf('cls_token');
    this.sepId = idOf('sep_token');
    this.maskId = idOf('mask_token');
    this.frame = readFrame(tokenizerJson.post_processor);
    this.vocabSize = model.vocab.length;
    this.specialIds = new Set(addedTokens.filter((token) => token.special).map(({ id }) => id));
    this.cleanUp = tokenizerConfig.clean_up_tokenization_spaces === true;
    this.byteLevel = containsType(tokenizerJson.decoder, 'ByteLevel');
    const template = tokenizerConfig.chat_template as ChatTemplateSource | undefined | null;
    const hasTemplate = template !== undefined && template !== null && template !== '';
    this.chatTemplate = hasTemplate ? new ChatTemplate(template, config) : null;
  }

  /**
   * Makes a tokenizer from the contents of tokenizer.json and tokenizer_config.json.
   * @throws FormatError, UnsupportedError naming the part at fault
   */
  static fromJson(tokenizerJson: object, tokenizerConfig: object = {}): Tokenizer {
    checkArgument('tokenizer: tokenizer.json', kCall.object, tokenizerJson);
    checkArgument('tokenizer: tokenizer_config.json', kCall.object, tokenizerConfig);
    try {
      return new Tokenizer({
        tokenizerJson: tokenizerJson as Json,
        tokenizerConfig: tokenizerConfig as Json,
        missingBytes: 'join',
      });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      throw malformed(`it nests too deeply (${error.message})`);
    }
  }

  /**
   * Makes a tokenizer from a tokenizer.json. The special tokens by role (eos, ...) and the chat template are in
   * tokenizer_config.json; without its path they are null. `fromPretrained` finds both files.
   * @throws FormatError naming the file
   */
  static async fromFile(path: string, options: { configPath?: string } = {}): Promise<Tokenizer> {
    checkArgument('tokenizer: the file', kCall.path, path);
    checkCall('tokenizer', options, { configPath: kCall.path });
    const json = await readJson(path);
    const config = options.configPath === undefined ? {} : await readJson(options.configPath);
    return withPath(path, () => Tokenizer.fromJson(json, config));
  }

  /**
   * Loads the tokenizer of a model: a Hugging Face folder (tokenizer.json with, where they exist, tokenizer_config.json,
   * special_tokens_map.json and chat_template.jinja), a GGUF file, a folder that holds one, or an id on the Hub. From the Hub, only
   * the tokenizer's files are downloaded, or the GGUF file if there is no tokenizer.json. A tokenizer.json beside a GGUF file takes
   * precedence over the file's own vocabulary.
   * @throws FormatError naming the file that is missing or damaged; ArgumentError, NativeError as resolveModel does
   */
  static async fromPretrained(
    nameOrPath: string,
    options: ResolveOptions = {},
  ): Promise<Tokenizer> {
    const files = await readTokenizerFiles(await resolveTokenizer(nameOrPath, options));
    if (files.tokenizerJson === null)
      return withPath(files.path, () => Tokenizer.fromGguf(files.metadata));
    const { tokenizerJson, tokenizerConfig } = files;
    return withPath(files.path, () => Tokenizer.fromJson(tokenizerJson, tokenizerConfig));
  }

  /**
   * Makes a tokenizer from the metadata of a GGUF file (tokenizer.ggml.*, tokenizer.chat_template).
   * @throws UnsupportedError for a kind of vocabulary or a pre-tokenizer that is not known
   */
  static fromGguf(metadata: GgufMetadata): Tokenizer {
    return new Tokenizer({ ...tokenizerFromGgufMetadata(metadata), missingBytes: 'separate' });
  }

  /** Makes a tokenizer in another process than the one that described it. */
  static fromSetup({ ranks, ...parts }: TokenizerSetup): Tokenizer {
    return new Tokenizer({ ...parts, merges: ranks ? new GreedyMerges(ranks) : undefined });
  }

  /**
   * Writes tokenizer.json and tokenizer_config.json into a folder, for this library and Hugging Face's, also for a tokenizer from a
   * GGUF file. A file that exists is not replaced.
   */
  async savePretrained(folder: string): Promise<void> {
    checkArgument('tokenizer: the folder', kCall.path, folder);
    await writeTokenizerFiles(folder, this.parts);
  }

  /**
   * The vocabulary as metadata of a GGUF file (tokenizer.*), by which llama.cpp gives the same ids.
   * @param rows of the model's embedding, at least as many as tokens
   * @throws UnsupportedError for a tokenizer of a kind that is not written, or with more tokens than rows
   */
  ggufMetadata(rows: number): ReadonlyMap<string, GgufTypedValue> {
    const ids = { bos: this.bosId, eos: this.eosId, padding: this.padId, unknown: this.unkId };
    const [first, last] = [this.encode('a')[0], this.encode('a').at(-1)];
    const adds = {
      bos: this.bosId !== null && first === this.bosId,
      eos: this.eosId !== null && last === this.eosId,
    };
    const entries = new Map(vocabularyMetadata(this.parts, { rows, ids, adds }));
    const written = Tokenizer.fromGguf(
      new Map(Array.from(entries, ([key, { value }]) => [key, value])),
    );
    const inForm = isNfc(this.parts.tokenizerJson.normalizer);
    for (const text of kProbes.map((probe) => (inForm ? probe.normalize('NFC') : probe))) {
      const [own, other] = [this.encode(text).join(), written.encode(text).join()];
      if (own === other) continue;
      throw new UnsupportedError(
        `gguf: this tokenizer gives other ids than llama.cpp would, as for ${JSON.stringify(text)}; give the GGUF file of the model ` +
          'as the base, whose vocabulary is kept',
      );
    }
    return entries;
  }

  /**
   * Converts a text to ids. A text of megabytes takes seconds, in which the event loop waits; the data pipeline therefore encodes in
   * {@link withLongTexts}.
   * @throws FormatError if a regular expression of the tokenizer.json takes too long; ArgumentError for a text or an option of another
   *   type
   */
  encode(text: string, options: EncodeOptions = {}): number[] {
    checkArgument('tokenizer: the text', kCall.text, text);
    checkCall('tokenizer', options, kEncodeTable);
    const { addSpecialTokens = true, parseSpecial = true } = options;
    const encoding = this.encoding[parseSpecial ? 'special' : 'plain'];
    const ids =
      this.longTexts.ids({ text, parseSpecial }) ??
      this.inTime(text.length, () => encoding.ids(text));
    if (!isComplete(ids)) {
      throw malformed(
        'the text has a character without a token, and the vocabulary does not have the unknown token',
      );
    }
    return addSpecialTokens ? applyFrame(this.frame, ids, null).ids : ids;
  }

  /**
   * Runs synchronous code that encodes with this tokenizer, and has long texts encoded in another process meanwhile, so that the event
   * loop stays free. The code runs again for each of them and must have no effects.
   * @throws what `work` throws, the signal's reason, NativeError for a text for which the memory is not sufficient
   */
  withLongTexts<T>(work: () => T, options: { signal?: AbortSignal | undefined } = {}): Promise<T> {
    checkCall('tokenizer', options, { signal: kCall.signal });
    return this.longTexts.run(work, options.signal);
  }

  /**
   * Converts a text or a pair of texts to ids with special tokens ([CLS] a [SEP] b [SEP]), and the token type of each id.
   * @param b the second text; null for none
   * @throws ArgumentError if maxLength leaves no room for a token of text
   */
  encodePair(a: string, b: string | null = null, options: PairOptions = {}): Encoding {
    checkCall('tokenizer', options, kPairTable);
    const { addSpecialTokens = true, maxLength, ...rest } = options;
    const frame = addSpecialTokens ? this.frame : readFrame(null);
    const own = frameLength(frame, b === null ? 1 : 2);
    if (maxLength !== undefined && !(maxLength > own)) {
      throw new ArgumentError(
        `tokenizer: maxLength must be above ${own}, the number of special tokens, got ${maxLength}`,
      );
    }
    const plain = (text: string) => this.encode(text, { ...rest, addSpecialTokens: false });
    return applyFrame(frame, plain(a), b === null ? null : plain(b), maxLength);
  }

  /** Converts ids to text. Bytes that are not UTF-8 become U+FFFD. */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    checkArgument('tokenizer: the ids', kCall.ids, ids);
    checkCall('tokenizer', options, kDecodeTable);
    if (ids.length === 0) return '';
    const checked = Array.from(ids, (id) => this.check(id));
    return this.inTime(ids.length, () =>
      this.tokenizer.decode(checked, {
        skip_special_tokens: options.skipSpecialTokens ?? false,
        clean_up_tokenization_spaces: this.cleanUp,
      }),
    );
  }

  /**
   * Decodes ids one at a time: the parts together are the text of decode(), and none of them ends within a character.
   * @throws UnsupportedError for a decoder of tokenizer.json that cannot decode id by id
   */
  decodeStream(options: DecodeOptions = {}): DecodeStream {
    checkCall('tokenizer', options, kDecodeTable);
    const { skipSpecialTokens = false } = options;
    return new DecodeStream({
      decoder: this.parts.tokenizerJson.decoder,
      tokenOf: (id) => this.tokenizer.id_to_token(id),
      skipped: new Set(skipSpecialTokens ? this.tokenizer.special_tokens : []),
      added: new Set(this.addedIds.keys()),
      cleanUp: this.cleanUp,
    });
  }

  /** The token's entry in the vocabulary, e.g. `Ġthe`. */
  token(id: number): string {
    return this.tokenizer.id_to_token(this.check(id)) as string;
  }

  /** The id of a vocabulary entry, or null. */
  tokenId(token: string): number | null {
    return this.addedIds.get(token) ?? this.tokenizer.model.tokens_to_ids.get(token) ?? null;
  }

  /**
   * The bytes that an id stands for, which may be a part of a character; the bytes of several ids together are those of the text.
   * For a vocabulary that is not byte-level, these are the bytes of the decoded id.
   */
  tokenBytes(id: number): Uint8Array {
    const token = this.token(id);
    const isAdded = this.addedIds.get(token) === id;
    const bytes = this.byteLevel && !isAdded ? bytesOfToken(token) : null;
    return bytes ?? new TextEncoder().encode(isAdded ? token : this.decode([id]));
  }

  /**
   * Renders a conversation by the model's chat template.
   * @throws ArgumentError if the model has no chat template, or the template refuses the conversation
   */
  renderChat(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    if (!this.chatTemplate) {
      throw new ArgumentError(
        'tokenizer: the model has no chat template; put its chat_template.jinja beside tokenizer.json',
      );
    }
    return this.chatTemplate.render(messages, options);
  }

  /** Renders a conversation and converts it to ids. No special tokens are added, since the template writes them. */
  encodeChat(messages: readonly ChatMessage[], options: RenderOptions = {}): number[] {
    return this.encode(this.renderChat(messages, options), { addSpecialTokens: false });
  }

  /** Runs a conversion, and stops it if a regular expression of the file takes too long. @param length of the text, or ids */
  private inTime<T>(length: number, convert: () => T): T {
    const { unknownRegexes: regexes } = this;
    const stopped = (what: string) => {
      const list = regexes.map((regex) => JSON.stringify(regex.slice(0, kShown))).join(', ');
      const own =
        regexes.length === 0 ? '' : `, by a tokenizer.json with its own patterns (${list})`;
      return new FormatError(`tokenizer: a text of length ${length} ${what}${own}`, {
        advice: `${regexes.length === 0 ? '' : 'correct the pattern in tokenizer.json, or '}leave the text out`,
      });
    };
    try {
      if (regexes.length === 0) return converted(convert);
      const limitMs = kLimitMs.least + Math.ceil(kLimitMs.each * length);
      const late = () => stopped(`was not converted within ${limitMs} ms`);
      return withDeadline(limitMs, () => converted(convert), late);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      throw stopped(`takes too much memory (${error.message})`);
    }
  }

  private check(id: number): number {
    if (this.tokenizer.id_to_token(id) !== undefined) return id;
    throw new ArgumentError(
      `tokenizer: ${shown(id)} is no id of the vocabulary; give ids below ${this.vocabSize} that have a token`,
    );
  }
}

/** Runs a conversion; an error of the package below is one of the tokenizer.json, which asks for what it cannot do. */
function converted<T>(convert: () => T): T {
  try {
    return convert();
  } catch (error) {
    if (error instanceof RangeError || error instanceof BaloraError) throw error;
    throw malformed(
      `the text cannot be converted as tokenizer.json says (${(error as Error).message})`,
    );
  }
}

/** Texts in which pre-tokenizers and merges differ. */
const kProbes: readonly string[] = [
  'a',
  ' Hello  world!\n\n\tTabs,\r\nlines   ',
  "I'll say IT'S 12345 and 3.14159, 1234567",
  'naïve café Ünïcödé ŒUVRE straße',
  '日本語の文章と中文，한국어도',
  'Привет, мир! שלום مرحبا नमस्ते',
  '🙂👍🏽 🇫🇷 e\u0301 \u00a0 \u200b ',
  'def f(x):\n    return x**2 # camelCaseWord HTTPServer',
];

/** Time for a text, and for each of its characters: a hundred times what it usually takes. */
const kLimitMs = { least: 2000, each: 0.02 };
/** Characters of a pattern that are shown in messages. */
const kShown = 80;

/** The special tokens by role, such as `</s>` for `eos_token`. In the configuration, each is a string or an object with its content. */
function roleTokens(config: Json): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const role of kRoles) {
    const value = config[role];
    const content = value !== null && typeof value === 'object' ? (value as Json).content : value;
    if (typeof content === 'string') tokens[role] = content;
  }
  return tokens;
}

/** Whether every token has an id. */
function isComplete(ids: readonly (number | undefined)[]): ids is number[] {
  return !ids.includes(undefined);
}

/**
 * The package's model and decoder. The other steps are done here, and of the configuration it gets the names of special tokens alone:
 * it takes more from there, which Hugging Face's tokenizers do not.
 */
function build(parts: Json, specialTokens: unknown): HfTokenizer {
  const unused = { normalizer: null, pre_tokenizer: null, post_processor: null };
  try {
    const tokenizer = new HfTokenizer(
      { ...unused, ...parts },
      { additional_special_tokens: specialTokens },
    );
    repairDecoder(tokenizer.decoder);
    return tokenizer;
  } catch (error) {
    if (error instanceof BaloraError) throw error;
    throw malformed(`${error instanceof Error ? error.message : String(error)}`);
  }
}

/** Takes added tokens out of the vocabulary of a model that does not have them, where the package puts them. */
function hideAddedTokens(
  model: HfModel,
  { vocab }: Json,
  addedIds: ReadonlyMap<string, number>,
): void {
  const own = ownIds(vocab);
  for (const content of addedIds.keys()) {
    const id = own(content);
    if (id === undefined) model.tokens_to_ids.delete(content);
    else model.tokens_to_ids.set(content, id);
  }
}

/** Whether a component of tokenizer.json has the given type, or contains one that has. */
function containsType(node: unknown, type: string): boolean {
  if (node === null || typeof node !== 'object') return false;
  return (
    (node as Json).type === type || Object.values(node).some((child) => containsType(child, type))
  );
}

/** Runs `make`, and adds the file's path to an error about its contents that has none. */
function withPath<T>(path: string, make: () => T): T {
  try {
    return make();
  } catch (error) {
    if (error instanceof FormatError && !error.path) {
      throw fileError(path, error.message, '');
    }
    if (error instanceof UnsupportedError && !error.message.startsWith(path)) {
      throw new UnsupportedError(`${path}: ${error.message}`);
    }
    throw error;
  }
}

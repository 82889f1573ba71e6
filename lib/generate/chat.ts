/**
 * Conversations with a model. The keys and values of the history stay in the cache, so that a turn computes what is new: the message
 * and the answer. The whole conversation is put into the chat template at every turn, since templates may change what came before;
 * where its tokens differ from the cached ones, the cache goes back to what they have in common.
 */
import { firstOf } from '../abort.ts';
import { AdapterModel } from '../adapters/adapter_model.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { ArgumentError, UnsupportedError } from '../errors.ts';
import { CausalLM, Model } from '../models/index.ts';
import {
  type CallTable,
  checkArgument,
  checkCall,
  instanceOf,
  kCall,
  kindsOf,
  listOf,
  orNull,
} from '../options/call.ts';
import { type ChatMessage, checkRoles } from '../text/chat_template.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import { ContinuedSession } from './continued_session.ts';
import { adapterRun, type GenerateOptions, Generation, generateWith } from './generate.ts';
import { openSession } from './open_session.ts';
import {
  type GenerationSettings,
  generationOptions,
  type ResolvedSettings,
  resolveSettings,
} from './options.ts';
import { checkIds } from './prompts.ts';
import type { GeneratedText, GeneratedToken } from './sequence.ts';

/** Options of {@link openChat}: those of its answers, and what the conversation begins with. */
export interface ChatOptions extends Omit<GenerationSettings, 'numReturnSequences' | 'batchSize'> {
  /** The model's tokenizer, which has a chat template. */
  tokenizer: Tokenizer;
  /**
   * Name of the adapter of an AdapterModel that answers; null for the model before tuning. Default: the adapter that is active, or
   * none where it is switched off.
   */
  adapter?: string | null;
  /** Text of the system message; null: none. Default null. */
  system?: string | null;
  /** Messages that the conversation begins with, after the system message. Default none. */
  messages?: readonly ChatMessage[];
}

/** A model that a conversation can be had with. */
export type ChatModel = CausalLM | TunedModel<CausalLM>;

/**
 * Opens a conversation.
 * @throws ArgumentError for a bad option, naming it, and for a tokenizer without a chat template; UnsupportedError for a model that is
 *   not a causal language model
 * @example
 * const chat = openChat(model, { tokenizer, system: 'Answer in one sentence.' });
 * for await (const { text } of chat.send('What is a whale?')) process.stdout.write(text);
 */
export function openChat(model: ChatModel, options: ChatOptions): Chat {
  return new Chat(model, options);
}

/** The options of text generation that a conversation, which has one answer at a time, does not have. */
const kForeignKeys = ['numReturnSequences', 'batchSize'] as const;

/** The kinds of the options. */
const kTable: CallTable<ChatOptions> = {
  tokenizer: instanceOf(Tokenizer, 'a Tokenizer'),
  adapter: orNull(kCall.text),
  system: kCall.any,
  messages: listOf(kCall.object, 'a list of messages { role, content }'),
  ...kindsOf(generationOptions),
};

/** A conversation; see {@link openChat}. */
export class Chat {
  readonly #base: CausalLM;
  readonly #tokenizer: Tokenizer;
  readonly #settings: GenerationSettings;
  readonly #resolved: ResolvedSettings;
  /** The messages that the conversation began with. */
  readonly #first: readonly ChatMessage[];
  /** The caches by adapter, whose keys and values differ. */
  readonly #caches = new Map<string | null | undefined, ContinuedSession>();
  #adapter: string | null | undefined;
  #system: string | null;
  #history: ChatMessage[];
  /** Number of answers since the beginning, by which draws differ from turn to turn. */
  #turns = 0;
  #isAnswering = false;
  #isDisposed = false;

  /** @internal */
  constructor(
    private readonly model: ChatModel,
    options: ChatOptions,
  ) {
    checkCall('chat', options, kTable);
    const { tokenizer, adapter, system = null, messages = [], ...settings } = options;
    const foreign = kForeignKeys.find((key) => key in settings);
    if (foreign !== undefined) {
      throw new ArgumentError(`chat: it has one answer at a time; leave ${foreign} out`);
    }
    checkRoles('chat: messages', messages, tokenizer?.chatTemplate ?? null);
    this.#base = causalOf(model);
    this.#settings = settings;
    this.#resolved = resolveSettings(settings);
    this.#tokenizer = checkedTokenizer(tokenizer);
    this.#first = [...messages];
    this.#history = [...messages];
    this.#system = checkedSystem(system);
    const active = model instanceof AdapterModel && (model.enabled ? model.active : null);
    this.#adapter = adapter !== undefined || active === false ? adapter : active;
    adapterRun(model, this.#adapter);
  }

  /** The messages so far, the system message first. */
  get messages(): readonly ChatMessage[] {
    const system = this.#system === null ? [] : [{ role: 'system', content: this.#system }];
    return [...system, ...this.#history];
  }

  /** Name of the adapter that answers; null for the model before tuning, undefined for a model without adapters. */
  get adapter(): string | null | undefined {
    return this.#adapter;
  }

  /**
   * Sets the adapter that answers from now on. Each adapter has a cache of its own, in which the turns that it has missed are
   * computed with its next answer.
   * @throws ArgumentError for a name that the model does not have, and during an answer
   */
  set adapter(name: string | null) {
    this.#checkIdle();
    checkArgument('chat: adapter', orNull(kCall.text), name);
    adapterRun(this.model, name);
    this.#adapter = name;
  }

  /** Text of the system message; null: none. */
  get system(): string | null {
    return this.#system;
  }

  /** Sets the system message for the answers from now on; the history stays. @throws ArgumentError during an answer */
  set system(text: string | null) {
    this.#checkIdle();
    this.#system = checkedSystem(text);
  }

  /** Number of tokens whose keys and values are kept for the adapter that answers. */
  get cachedTokens(): number {
    return this.#caches.get(this.#adapter)?.length ?? 0;
  }

  /** Number of tokens that the conversation may have, answers included. */
  get contextLength(): number {
    return this.#base.contextLength;
  }

  /** Bytes of the caches of all adapters. */
  get cacheBytes(): number {
    return [...this.#caches.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /**
   * Sends a message and begins the answer, one at a time. When it ends, both are part of the conversation; also an answer that was
   * stopped, with the text that it has, unless that is empty. After an error the conversation is as before.
   * @param options signal: ends the answer at once, also while the message is being read
   * @returns the answer as a stream, and a promise of the whole
   * @throws ArgumentError for a message that is no text or empty, and during another answer. Errors of the generation reject the
   *   stream and the promise: ContextLengthError for a conversation that the context has no room for
   */
  send(content: string, options: { signal?: AbortSignal } = {}): ChatAnswer {
    this.#checkIdle();
    checkCall('chat', options, { signal: kCall.signal });
    const { signal } = options;
    if (typeof content !== 'string' || content === '') {
      throw new ArgumentError('chat: the message must be a text that is not empty');
    }
    const message = { role: 'user', content };
    const generation = new Generation(async (emit, left) => {
      try {
        return [await this.#answer(message, { emit, left, signal })];
      } finally {
        this.#isAnswering = false;
      }
    });
    this.#isAnswering = true;
    return new ChatAnswer(generation);
  }

  /** Begins the conversation anew: with the messages given at first, and without a cache. @throws ArgumentError during an answer */
  reset(): void {
    this.#checkIdle();
    this.#history = [...this.#first];
    this.#turns = 0;
    this.#freeCaches();
  }

  /** Frees the caches; the conversation cannot go on. Idempotent. @throws ArgumentError during an answer */
  dispose(): void {
    if (this.#isDisposed) return;
    this.#checkIdle();
    this.#isDisposed = true;
    this.#freeCaches();
  }

  async #answer(message: ChatMessage, { emit, left, signal }: Answering): Promise<GeneratedText> {
    const ids = await this.#encode([...this.messages, message]);
    const stop = signal === undefined ? null : firstOf(signal, left);
    try {
      return await this.#generate(message, { ids, emit, signal: stop?.signal ?? left });
    } finally {
      stop?.release();
    }
  }

  async #generate(
    message: ChatMessage,
    { ids, emit, signal }: { ids: Int32Array; emit: Answering['emit']; signal: AbortSignal },
  ): Promise<GeneratedText> {
    const stream = generateWith(this.#open(), this.model, {
      ...this.#settings,
      seed: this.#resolved.seed + this.#turns,
      ...{ ids, tokenizer: this.#tokenizer },
      adapter: this.#adapter,
      signal,
    } satisfies GenerateOptions);
    for await (const token of stream) emit(token);
    const [result] = (await stream.result) as [GeneratedText];
    if (result.text === '' && result.finishReason === 'abort') return result;
    this.#history.push(message, { role: 'assistant', content: result.text });
    this.#turns++;
    return result;
  }

  /** The conversation as ids, in the template. @throws ContextLengthError if there is no room for an answer */
  async #encode(messages: readonly ChatMessage[]): Promise<Int32Array> {
    const tokenizer = this.#tokenizer;
    const ids = await tokenizer.withLongTexts(() =>
      tokenizer.encodeChat(messages, { addGenerationPrompt: true }),
    );
    return checkIds(ids, {
      ...{ what: 'chat: the conversation with this message', model: this.#base },
      advice: 'begin anew with reset(), or shorten the message',
    });
  }

  /** How a generation opens its session: on the cache of the adapter, where the model has one. */
  #open() {
    if (this.#base.cachedLayers === null) return openSession;
    let cache = this.#caches.get(this.#adapter);
    if (cache === undefined) {
      cache = new ContinuedSession(this.#base);
      this.#caches.set(this.#adapter, cache);
    }
    return cache.open;
  }

  #freeCaches(): void {
    for (const cache of this.#caches.values()) cache.reset();
    this.#caches.clear();
  }

  #checkIdle(): void {
    if (this.#isDisposed) throw new ArgumentError('chat: it has been disposed of; open another');
    if (!this.#isAnswering) return;
    throw new ArgumentError(
      'chat: the answer before has not ended; await its result, abort its signal, or leave the loop over it',
    );
  }
}

/** The receiver of an answer's tokens, and the ways to end it. */
interface Answering {
  readonly emit: (token: GeneratedToken) => void;
  readonly left: AbortSignal;
  readonly signal: AbortSignal | undefined;
}

/**
 * An answer of a {@link Chat}: its tokens as they come, and the promise of the whole. It is computed whether or not it is read;
 * whoever leaves the loop over the tokens ends it.
 */
export class ChatAnswer implements AsyncIterable<GeneratedToken> {
  /** The answer, once it has ended. */
  readonly result: Promise<GeneratedText>;

  /** @internal */
  constructor(private readonly generation: Generation) {
    this.result = generation.result.then(([answer]) => answer as GeneratedText);
    // An error reaches those who iterate or await; that nobody does is no reason to end the process.
    this.result.catch(() => {});
  }

  /** The tokens from the first on. @throws what `result` is rejected with */
  [Symbol.asyncIterator](): AsyncGenerator<GeneratedToken, void> {
    return this.generation[Symbol.asyncIterator]();
  }
}

function causalOf(given: ChatModel): CausalLM {
  const model: unknown = given instanceof Model ? given : given?.model;
  if (model instanceof CausalLM) return model;
  const found = model instanceof Model ? `a ${model.modelType} model` : typeof given;
  throw new UnsupportedError(
    `chat: the model must be a causal language model, or a tuned one, got ${found}; generate() answers with others`,
  );
}

function checkedTokenizer(tokenizer: Tokenizer | undefined): Tokenizer {
  if (tokenizer === undefined) {
    throw new ArgumentError(
      "chat: it needs the model's tokenizer; pass tokenizer: await Tokenizer.fromPretrained(model.folder)",
    );
  }
  if (tokenizer.chatTemplate !== null) return tokenizer;
  throw new ArgumentError(
    'chat: the model has no chat template, so that it was not trained on conversations; put its chat_template.jinja beside ' +
      'tokenizer.json, or continue texts with generate()',
  );
}

function checkedSystem(system: unknown): string | null {
  if (system === null || (typeof system === 'string' && system !== '')) return system;
  throw new ArgumentError('chat: system must be a text that is not empty, or null');
}

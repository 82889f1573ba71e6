/**
 * Text generation: the loop around a model's forward. It reads the prompts in batches, chooses a token for each live sequence, passes on
 * the text that became certain, and takes in further prompts as sequences end. The forward itself is a session's (session.ts).
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { firstOf, heed, isAborted, withAbort } from '../abort.ts';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { checkNoAdapters } from '../adapters/attach.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { ArgumentError, NativeError } from '../errors.ts';
import { CausalLM, Model, Seq2SeqLM } from '../models/index.ts';
import { type CallTable, checkCall, instanceOf, kCall, kindsOf, orNull } from '../options/call.ts';
import { noGrad } from '../tensor.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import { endTokens } from './end_tokens.ts';
import { type GeneratingModel, type OpenSession, openSession } from './open_session.ts';
import {
  type GenerationSettings,
  generationOptions,
  type ResolvedSettings,
  resolveSettings,
} from './options.ts';
import { makeProcessors } from './processors/list.ts';
import type { LogitsProcessor } from './processors/processor.ts';
import { encodePrompts, type PromptInput } from './prompts.ts';
import { Sampler } from './sampler.ts';
import { argmax, firstInvalid, logSumExp, topLogprobs } from './scores.ts';
import { type Choice, type GeneratedText, type GeneratedToken, Sequence } from './sequence.ts';
import type { DecodeSession, Prefilled, SessionOptions } from './session.ts';
import { StopStrings } from './stop_strings.ts';

/** Options of {@link generate}. */
export interface GenerateOptions extends GenerationSettings, PromptInput {
  /** The model's tokenizer. Without it, prompts are `ids`, and results have no text. */
  tokenizer?: Tokenizer;
  /**
   * Name of the adapter of an AdapterModel that generates; null for the model before tuning, which stays available beside any
   * adapter. Default: the model as it is, with its active adapter.
   */
  adapter?: string | null;
  /**
   * Whether the tokens with which all prompts of the call begin (examples before each question, a question before each of its
   * answers) are computed once, and the rest of each prompt after them. The results are those of whole prompts up to rounding; it
   * pays where the common beginning is the longer part. Causal language models only. Default false; prompts that are equal share
   * everything in any case.
   */
  sharePrefix?: boolean;
  /** Signal that ends the generation at once, also while prompts are being read; sequences that have not ended then have finishReason `abort`. */
  signal?: AbortSignal;
}

/** The kinds of the options; the prompts are checked one by one. */
const kTable: CallTable<GenerateOptions> = {
  tokenizer: instanceOf(Tokenizer, 'a Tokenizer'),
  prompt: kCall.any,
  messages: kCall.any,
  ids: kCall.any,
  adapter: orNull(kCall.text),
  sharePrefix: kCall.boolean,
  signal: kCall.signal,
  ...kindsOf(generationOptions),
};

/** A model that generates, or a tuned one. */
export type Generator = GeneratingModel | TunedModel<CausalLM> | TunedModel<Seq2SeqLM>;

/**
 * Generates text: continues prompts, or answers the sources of an encoder-decoder. Greedy and at most 256 tokens unless the options say
 * otherwise. It begins when the result is asked for or iterated over.
 * @returns a stream of tokens with their text, and a promise of all results
 * @throws ArgumentError at the call for a bad option or prompt, naming it. Errors of the generation reject the stream and the
 *   promise: NativeError (`ERR_NOT_FINITE`) for logits that are NaN, FormatError for a damaged generation_config.json
 * @example
 * const stream = generate(model, { tokenizer, prompt: 'Call me', maxNewTokens: 20 });
 * for await (const { text } of stream) process.stdout.write(text);
 * const [{ finishReason }] = await stream.result;
 */
export function generate(model: Generator, options: GenerateOptions): Generation {
  return generateWith(openSession, model, options);
}

/** generate() with sessions of the caller's. */
export function generateWith(
  open: OpenSession,
  model: Generator,
  options: GenerateOptions,
): Generation {
  checkCall('generate', options, kTable);
  const {
    tokenizer,
    adapter,
    signal,
    sharePrefix = false,
    prompt,
    messages,
    ids,
    ...given
  } = options;
  const settings = resolveSettings(given);
  const base = modelOf(model);
  const run = adapterRun(model, adapter);
  if (tokenizer === undefined && settings.stopStrings.length > 0) {
    throw new ArgumentError("generate: stopStrings needs the model's tokenizer; pass tokenizer");
  }
  const prompts = encodePrompts({ prompt, messages, ids }, { tokenizer, model: base });
  const prefix = sharePrefix ? commonPrefix(prompts, base) : new Int32Array(0);
  const call: Call = { open, model: base, run, settings, tokenizer, prompts, prefix };
  tokenizer?.decodeStream(); // refuses a decoder that has no stream
  return new Generation(async (emit, left) => {
    const stop = signal === undefined ? null : firstOf(signal, left);
    try {
      return await new Loop(call, emit, stop?.signal ?? left).run();
    } finally {
      stop?.release();
    }
  });
}

/** A checked call. */
interface Call {
  readonly open: OpenSession;
  readonly model: GeneratingModel;
  readonly run: SessionOptions['run'];
  readonly settings: ResolvedSettings;
  readonly tokenizer: Tokenizer | undefined;
  readonly prompts: readonly Int32Array[];
  /** The ids with which all prompts begin, to be computed once; none: each prompt is computed as a whole. */
  readonly prefix: Int32Array;
}

/**
 * The ids with which all of several prompts begin, less than the whole of any.
 * @throws ArgumentError for an encoder-decoder, whose encoder reads each source as a whole
 */
function commonPrefix(prompts: readonly Int32Array[], model: GeneratingModel): Int32Array {
  if (model instanceof Seq2SeqLM) {
    throw new ArgumentError(
      `generate: sharePrefix is for causal language models; the encoder of this ${model.modelType} model reads each prompt as a whole`,
    );
  }
  const [first] = prompts as [Int32Array];
  if (prompts.length === 1) return first.subarray(0, 0);
  const most = prompts.reduce((least, { length }) => Math.min(least, length), first.length) - 1;
  let count = 0;
  while (count < most && prompts.every((ids) => ids[count] === first[count])) count++;
  return first.subarray(0, count);
}

function modelOf(given: Generator): GeneratingModel {
  const model: unknown = given instanceof Model ? given : given?.model;
  if (model instanceof CausalLM || model instanceof Seq2SeqLM) return model;
  const found = model instanceof Model ? `a ${model.modelType} for classification` : typeof given;
  throw new ArgumentError(
    `generate: the model must be a language model or an encoder-decoder, or one that is tuned, got ${found}`,
  );
}

/** A function that runs forwards under an adapter. @throws ArgumentError for a name that the model does not have */
export function adapterRun(
  given: Generator,
  adapter: string | null | undefined,
): SessionOptions['run'] {
  if (given instanceof AdapterModel) {
    const tuned: AdapterModel<Model> = given;
    if (typeof adapter === 'string') {
      if (!tuned.names.includes(adapter)) {
        throw new ArgumentError(
          `generate: there is no adapter "${adapter}"; known: ${tuned.names.join(', ')}`,
        );
      }
      return (body) => noGrad(() => tuned.withAdapter(adapter, body));
    }
    if (adapter === null) {
      if (!tuned.hasTeacher) {
        throw new ArgumentError(
          'generate: adapter null is the model before tuning, which is not known: the adapter is on a residual, and its initial ' +
            'values are not beside it',
        );
      }
      return (body) => noGrad(() => tuned.withTeacher(body));
    }
    return (body) => noGrad(() => (tuned.enabled ? tuned.withAdapter(tuned.active, body) : body()));
  }
  if (typeof adapter === 'string') {
    throw new ArgumentError(
      `generate: adapter "${adapter}" needs an AdapterModel; pass that instead of its model`,
    );
  }
  if (adapter === null) {
    if (!(given instanceof Model)) {
      throw new ArgumentError(
        'generate: adapter null needs an AdapterModel; after full fine-tuning, load the model before tuning and pass that',
      );
    }
    checkNoAdapters(given);
  }
  return (body) => noGrad(body);
}

type Work = (
  emit: (token: GeneratedToken) => void,
  left: AbortSignal,
) => Promise<readonly GeneratedText[]>;

/**
 * A running generation, made by {@link generate}: the tokens of all sequences as they come, and the promise of the results. The texts of
 * a sequence's tokens, concatenated, are its final text. Whoever leaves the loop over the tokens ends the generation.
 */
export class Generation implements AsyncIterable<GeneratedToken> {
  readonly #tokens: GeneratedToken[] = [];
  #result: Promise<readonly GeneratedText[]> | null = null;
  #isSettled = false;
  readonly #left = new AbortController();
  #wake: (() => void)[] = [];

  /** @param work the generation itself, which passes each token to `emit` and ends early when the signal `left` aborts */
  constructor(private readonly work: Work) {}

  /** The results of all sequences in order, once the last has ended. */
  get result(): Promise<readonly GeneratedText[]> {
    if (this.#result === null) {
      const emit = (token: GeneratedToken): void => {
        this.#tokens.push(token);
        this.#notify();
      };
      this.#result = this.work(emit, this.#left.signal).finally(() => {
        this.#isSettled = true;
        this.#notify();
      });
      // An error reaches those who iterate or await; that nobody does is no reason to end the process.
      this.#result.catch(() => {});
    }
    return this.#result;
  }

  /** The tokens from the first on. @throws what `result` is rejected with */
  async *[Symbol.asyncIterator](): AsyncGenerator<GeneratedToken, void> {
    const { result } = this;
    try {
      for (let i = 0; ; i++) {
        while (i >= this.#tokens.length && !this.#isSettled) {
          await new Promise<void>((resolve) => this.#wake.push(resolve));
        }
        if (i >= this.#tokens.length) break;
        yield this.#tokens[i] as GeneratedToken;
      }
      await result;
    } finally {
      if (!this.#isSettled) this.#left.abort();
      await result.catch(() => {});
    }
  }

  #notify(): void {
    const waiting = this.#wake;
    this.#wake = [];
    for (const resolve of waiting) resolve();
  }
}

/** A sequence that is being decoded, its number in the session, and the logits that follow it. */
interface Live {
  readonly sequence: Sequence;
  readonly number: number;
  logits: Float32Array;
}

/** A prompt and the sequences that continue it. */
interface Waiting {
  readonly prompt: Int32Array;
  readonly sequences: readonly Sequence[];
}

/** Milliseconds of work after which other callbacks of the process get their turn. */
const kTurnMs = 8;

/** The loop of one call. */
class Loop {
  readonly #processors: readonly LogitsProcessor[];
  readonly #sampler: Sampler | null;
  #live: Live[] = [];
  #turn = 0;
  /** The sequence of the common beginning of all prompts, once it has been computed. */
  #prefix: number | null = null;

  constructor(
    private readonly call: Call,
    private readonly emit: (token: GeneratedToken) => void,
    private readonly stop: AbortSignal,
  ) {
    const { settings } = call;
    this.#processors = makeProcessors({ ...settings }, settings.doSample);
    this.#sampler = settings.doSample ? new Sampler(settings.seed) : null;
  }

  async run(): Promise<readonly GeneratedText[]> {
    const { open, model, run } = this.call;
    const waiting = await this.#sequences();
    const all = waiting.flatMap(({ sequences }) => sequences);
    const longest = waiting.reduce(
      (most, { prompt }) => Math.max(most, this.#lengthOf(prompt)),
      Number.NEGATIVE_INFINITY,
    );
    const session = open(model, {
      run: (body) => withAbort(this.stop, () => run(body)),
      maxLength: longest,
    });
    const release = heed(this.stop);
    try {
      this.#turn = performance.now();
      while (!this.stop.aborted && waiting.length + this.#live.length > 0) {
        await this.#admit(session, waiting);
        await this.#chooseAll(session);
        await this.#step(session);
      }
    } catch (error) {
      if (!this.stop.aborted || !isAborted(error)) throw error;
    } finally {
      session.dispose();
      release();
    }
    return all.map((sequence) => sequence.result());
  }

  /** Makes the sequences of all prompts. */
  async #sequences(): Promise<Waiting[]> {
    const { model, settings, tokenizer, prompts } = this.call;
    const { skipSpecialTokens, numReturnSequences: count } = settings;
    const { stops, eosTokenIds } = await this.#ends();
    return prompts.map((prompt, p) => {
      const sequences = Array.from({ length: count }, (_, r) => {
        return new Sequence({
          index: p * count + r,
          promptTokens: prompt.length,
          context: model instanceof Seq2SeqLM ? [model.decoderStartTokenId] : prompt,
          maxNewTokens: this.#lengthOf(prompt) - this.#contextOf(prompt),
          eosTokenIds,
          decode: tokenizer?.decodeStream({ skipSpecialTokens }) ?? null,
          stops: new StopStrings(stops),
        });
      });
      return { prompt, sequences };
    });
  }

  /** The stop strings and the end tokens. A stop string that is a special token has no text, so its id ends a sequence. */
  async #ends(): Promise<{ stops: string[]; eosTokenIds: Set<number> }> {
    const { model, settings, tokenizer } = this.call;
    const eosTokenIds = new Set(settings.eosTokenIds ?? (await endTokens(model, tokenizer)));
    const stops: string[] = [];
    for (const stop of settings.stopStrings) {
      const id = tokenizer?.tokenId(stop) ?? null;
      const isSpecial = id !== null && tokenizer?.specialIds.has(id) === true;
      if (isSpecial && settings.skipSpecialTokens) eosTokenIds.add(id);
      else stops.push(stop);
    }
    return { stops, eosTokenIds };
  }

  /** Tokens of the context that are there before the first new one. */
  #contextOf(prompt: Int32Array): number {
    return this.call.model instanceof Seq2SeqLM ? 1 : prompt.length;
  }

  /** Largest number of tokens of a sequence, those of the context included. */
  #lengthOf(prompt: Int32Array): number {
    const { model, settings } = this.call;
    return Math.min(this.#contextOf(prompt) + settings.maxNewTokens, model.contextLength);
  }

  /** Reads as many of the waiting prompts as there is room for. */
  async #admit(session: DecodeSession, waiting: Waiting[]): Promise<void> {
    const admitted: Waiting[] = [];
    let room = this.call.settings.batchSize - this.#live.length;
    for (let next = waiting[0]; next !== undefined; next = waiting[0]) {
      const count = next.sequences.length;
      // A prompt with more sequences than fit is admitted alone.
      if (count > room && this.#live.length + admitted.length > 0) break;
      room -= count;
      admitted.push(next);
      waiting.shift();
    }
    if (admitted.length === 0) return;
    const begun = performance.now();
    const prefilled = await this.#prefill(
      session,
      admitted.map(({ prompt }) => prompt),
    );
    const seconds = (performance.now() - begun) / 1000;
    admitted.forEach(({ sequences }, i) => {
      const {
        sequence: number,
        logits,
        cachedTokens = 0,
      } = prefilled[i] as (typeof prefilled)[number];
      const numbers = [number, ...session.fork(number, sequences.length - 1)];
      sequences.forEach((sequence, r) => {
        sequence.begin(seconds, cachedTokens);
        const own = r === 0 ? logits : logits.slice();
        this.#live.push({ sequence, number: numbers[r] as number, logits: own });
      });
    });
  }

  /** Reads prompts, their common beginning once for all of the call. */
  async #prefill(
    session: DecodeSession,
    prompts: readonly Int32Array[],
  ): Promise<readonly Prefilled[]> {
    const { prefix } = this.call;
    if (prefix.length === 0) return session.prefill(prompts);
    if (this.#prefix === null) {
      const [begun] = await session.prefill([prefix]);
      this.#prefix = (begun as Prefilled).sequence;
    }
    const sequences = session.fork(this.#prefix, prompts.length);
    const rest = prompts.map((ids, i) => ({
      sequence: sequences[i] as number,
      ids: ids.subarray(prefix.length),
    }));
    const rows = await session.extend(rest);
    return rest.map(({ sequence }, i) => ({ sequence, logits: rows[i] as Float32Array }));
  }

  /** Chooses the next token of every live sequence, and lets go of those that end. */
  async #chooseAll(session: DecodeSession): Promise<void> {
    for (const { sequence, number, logits } of this.#live) {
      if (this.stop.aborted) return;
      this.emit(sequence.add(this.#choose(sequence, logits)));
      if (sequence.isFinished) session.release(number);
      await this.#giveTurn();
    }
    this.#live = this.#live.filter(({ sequence }) => !sequence.isFinished);
  }

  /** Chooses a token; the logits are overwritten. @throws NativeError, ArgumentError where no token can be chosen */
  #choose(sequence: Sequence, logits: Float32Array): Choice {
    const { logprobs } = this.call.settings;
    checkLogits(sequence, logits);
    const raw = logprobs === null ? null : logits.slice();
    for (const process of this.#processors) process(logits, sequence);
    const place = { sequence: sequence.index, position: sequence.newTokens };
    const token = this.#sampler === null ? argmax(logits) : this.#sampler.draw(logits, place);
    if (logits[token] === Number.NEGATIVE_INFINITY) {
      throw new ArgumentError(
        `generate: no token is left for sequence ${sequence.index}, since its end tokens are excluded by minNewTokens; lower that`,
      );
    }
    if (raw === null) return { token, logprob: null, topLogprobs: null };
    const sum = logSumExp(raw);
    return {
      token,
      logprob: (raw[token] as number) - sum,
      topLogprobs: topLogprobs(raw, logprobs as number, sum),
    };
  }

  /** Computes the logits that follow the last token of each live sequence. */
  async #step(session: DecodeSession): Promise<void> {
    if (this.#live.length === 0 || this.stop.aborted) return;
    const rows = await session.step(
      this.#live.map(({ number }) => number),
      this.#live.map(({ sequence }) => sequence.tokens.at(-1) as number),
    );
    this.#live.forEach((live, i) => {
      live.logits = rows[i] as Float32Array;
    });
  }

  /** Lets timers, I/O and other callbacks of the process run if they have not for a while. */
  async #giveTurn(): Promise<void> {
    if (performance.now() - this.#turn < kTurnMs) return;
    await nextTurn();
    this.#turn = performance.now();
  }
}

/** Refuses logits from which no token can be chosen. @throws NativeError (`ERR_NOT_FINITE`) */
function checkLogits(sequence: Sequence, logits: Float32Array): void {
  const id = firstInvalid(logits);
  if (id < 0) return;
  throw new NativeError(
    `generate: the logit of id ${id} at token ${sequence.newTokens} of sequence ${sequence.index} is ${logits[id]}`,
    {
      code: 'ERR_NOT_FINITE',
      advice:
        'the weights or the adapter hold such values, or overflow in their dtype: load the model in f32, or find the first op with ' +
        'setAnomalyMode(true)',
    },
  );
}

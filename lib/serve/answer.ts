/** The answer to one request: its prompts as ids, the generation, and what is sent of it. */
import { randomUUID } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import { type Generation, generateWith } from '../generate/generate.ts';
import type { OpenSession } from '../generate/open_session.ts';
import { checkIds } from '../generate/prompts.ts';
import type { GeneratedText, GeneratedToken } from '../generate/sequence.ts';
import { printableJson } from '../shown.ts';
import { ApiError, apiErrorOf } from './api_error.ts';
import {
  type AnswerHead,
  type Choice,
  type ChoiceEnd,
  type Endpoint,
  type ListedToken,
  listedToken,
  usageOf,
} from './endpoint.ts';
import { ConnectionLost, EventStream, waitFor } from './event_stream.ts';
import { checkCharacters, checkTokens, type PromptLimits } from './prompt_limits.ts';
import type { GenerationRequest } from './request.ts';
import { modelNamed, type ServedModels } from './served_models.ts';
import type { Slots } from './slots.ts';

/** The parts of the server that an answer uses. */
export interface AnswerContext {
  readonly served: ServedModels;
  readonly slots: Slots;
  readonly open: OpenSession;
  /** Aborted when the client is gone or the server stops. */
  readonly signal: AbortSignal;
  readonly limits: PromptLimits;
  /** Time after which a client that takes nothing loses its connection. */
  readonly stallMs: number;
}

/** The numbers of an answer, for the log. */
export interface AnswerNumbers {
  readonly model: string;
  readonly promptTokens: number;
  readonly newTokens: number;
}

/** An answer to a request whose fields have been checked. */
export class Answer {
  readonly #head: AnswerHead;
  /** Number of characters of the tokens of each choice that were listed. */
  readonly #offsets: number[] = [];

  constructor(
    private readonly endpoint: Endpoint,
    private readonly request: GenerationRequest,
    private readonly context: AnswerContext,
  ) {
    this.#head = {
      id: `${endpoint.prefix}${randomUUID().replaceAll('-', '')}`,
      created: Math.floor(Date.now() / 1000),
      model: request.model,
    };
  }

  /**
   * Generates the answer and sends it. The slot is free when the generation has ended, however slowly the client takes it.
   * @throws ApiError before anything was sent, ConnectionLost for a client that is gone
   */
  async send(response: ServerResponse): Promise<AnswerNumbers> {
    const { served, slots, signal } = this.context;
    const { adapter } = modelNamed(served.models, this.request.model);
    const { input } = this.request;
    checkCharacters(input, this.context.limits, this.endpoint.param);
    if ('ids' in input) checkTokens(input.ids, this.context.limits, this.endpoint.param);
    const release = await slots.take(signal);
    let generation: Generation;
    try {
      const ids = await this.#encode();
      generation = generateWith(this.context.open, served.generator, {
        ...this.request.settings,
        ...{ ids, signal, tokenizer: served.tokenizer },
        adapter,
      });
    } catch (error) {
      release();
      throw error instanceof ConnectionLost ? error : apiErrorOf(error, this.endpoint.param);
    }
    // It begins here, and goes on at its own speed: what the client has not taken are tokens, of which there is a limited number.
    void generation.result.then(release, release);
    const results = await (this.request.isStream
      ? this.#stream(generation, response)
      : this.#whole(generation, response));
    return {
      model: this.request.model,
      promptTokens: results.reduce((sum, { promptTokens }) => sum + promptTokens, 0),
      newTokens: results.reduce((sum, { tokens }) => sum + tokens.length, 0),
    };
  }

  /** The prompts as ids. Long texts are encoded in another process, since others wait for the event loop. */
  async #encode(): Promise<Int32Array[]> {
    const { tokenizer, model } = this.context.served;
    const { input } = this.request;
    const { param } = this.endpoint;
    const encode = (): (readonly number[])[] => {
      if ('ids' in input) return [...input.ids];
      if ('prompt' in input) return input.prompt.map((text) => tokenizer.encode(text));
      return [tokenizer.encodeChat(input.messages, { addGenerationPrompt: true })];
    };
    const all = await tokenizer.withLongTexts(encode, { signal: this.context.signal });
    checkTokens(all, this.context.limits, param);
    return all.map((ids, i) =>
      checkIds(ids, { what: all.length > 1 ? `${param}[${i}]` : param, model }),
    );
  }

  async #whole(
    generation: Generation,
    response: ServerResponse,
  ): Promise<readonly GeneratedText[]> {
    const tokens: ListedToken[][] | null = this.#isListed ? [] : null;
    if (tokens !== null) {
      for await (const token of generation) {
        const own = tokens[token.sequence] ?? [];
        tokens[token.sequence] = own;
        own.push(this.#listed(token));
      }
    }
    const results = await generation.result;
    const choices = results.map(({ text, finishReason }, i): Choice => {
      return { text, finishReason: this.#end(finishReason), tokens: tokens && (tokens[i] ?? []) };
    });
    const body = { ...this.endpoint.whole(this.#head, choices), usage: this.#usage(results) };
    const finished = waitFor(response, 'finish', this.context.stallMs);
    sendJson(response, 200, body);
    await finished;
    return results;
  }

  async #stream(
    generation: Generation,
    response: ServerResponse,
  ): Promise<readonly GeneratedText[]> {
    const events = new EventStream(response, this.context.stallMs);
    try {
      await this.#sendTokens(generation, events);
      const results = await generation.result;
      for (const [i, { finishReason }] of results.entries()) {
        await this.#sendPart(events, this.endpoint.closing(this.#head, i, this.#end(finishReason)));
      }
      if (this.request.includesUsage) {
        await events.send({ ...this.endpoint.usage(this.#head), usage: this.#usage(results) });
      }
      await events.send('[DONE]');
      await events.end();
      return results;
    } catch (error) {
      if (error instanceof ConnectionLost || !events.hasBegun) throw error;
      await events.send(apiErrorOf(error).body);
      await events.end();
      throw error;
    }
  }

  async #sendTokens(generation: Generation, events: EventStream): Promise<void> {
    const { numReturnSequences: n = 1 } = this.request.settings;
    const { input } = this.request;
    const prompts =
      'ids' in input ? input.ids : 'prompt' in input ? input.prompt : [input.messages];
    let isOpen = false;
    for await (const token of generation) {
      if (!isOpen) {
        isOpen = true;
        for (let i = 0; i < prompts.length * n; i++) {
          const opening = this.endpoint.opening(this.#head, i);
          if (opening !== null) await this.#sendPart(events, opening);
        }
      }
      const { text, sequence } = token;
      if (text === '' && !this.#isListed) continue;
      const tokens = this.#isListed ? [this.#listed(token)] : null;
      const offset = this.#offsets[sequence] ?? 0;
      await this.#sendPart(
        events,
        this.endpoint.part(this.#head, sequence, { text, tokens, offset }),
      );
      this.#offsets[sequence] = offset + (tokens?.[0]?.token.length ?? 0);
    }
  }

  /** Sends an object of a stream. Where the numbers of tokens are wanted, all but the last say that they do not have them. */
  async #sendPart(events: EventStream, part: object): Promise<void> {
    await events.send(this.request.includesUsage ? { ...part, usage: null } : part);
  }

  get #isListed(): boolean {
    return (this.request.settings.logprobs ?? null) !== null;
  }

  #listed(token: GeneratedToken): ListedToken {
    return listedToken(token, this.context.served.tokenizer);
  }

  #usage(results: readonly GeneratedText[]): object {
    return usageOf(results, this.request.settings.numReturnSequences ?? 1);
  }

  /** The end of a choice. @throws ConnectionLost, or ApiError where the server has stopped the generation */
  #end(reason: GeneratedText['finishReason']): ChoiceEnd {
    if (reason !== 'abort') return reason;
    const { reason: why } = this.context.signal;
    throw why instanceof Error ? why : new ApiError('the answer was stopped', { status: 503 });
  }
}

/** Sends a JSON object as the whole response. */
export function sendJson(
  response: ServerResponse,
  status: number,
  body: object,
  headers: Readonly<Record<string, string>> = {},
): void {
  const text = printableJson(body);
  response.writeHead(status, {
    'Content-Type': 'application/json; charset=utf-8',
    'Content-Length': String(Buffer.byteLength(text)),
    ...headers,
  });
  response.end(text);
}

/**
 * Requests for log-likelihoods as ids, by the rules of lm-evaluation-harness: where the text of a continuation begins among the tokens,
 * what comes before a text without context, and how a long text is divided into windows.
 */
import { ArgumentError } from '../errors.ts';
import { checkKeys } from '../options/call.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { stripEnd } from './python_text.ts';

/** Ids of which a model predicts the last ones. */
export interface LoglikelihoodRequest {
  /** At least one id, which is not scored. */
  readonly context: readonly number[];
  /** At least one id; the sum of their log-probabilities is the log-likelihood. */
  readonly continuation: readonly number[];
}

/** A tokenizer, with what stands before a text. */
export interface RequestEncoder {
  readonly tokenizer: Tokenizer;
  /** Whether BOS stands before each context that has text. lm-evaluation-harness sets it for Gemma alone. Default false. */
  readonly addBosToken?: boolean;
}

/**
 * The token that stands before a text without context: BOS, or EOS where the tokenizer has no BOS.
 * @throws ArgumentError for a tokenizer that has neither
 */
export function prefixToken({ bosId, eosId }: Pick<Tokenizer, 'bosId' | 'eosId'>): number {
  const id = bosId ?? eosId;
  if (id !== null) return id;
  throw new ArgumentError(
    'score: the tokenizer has neither a BOS nor an EOS token, one of which must stand before a text without context; ' +
      'name one in tokenizer_config.json',
  );
}

/**
 * The ids of a context and of the text that continues it. Both are encoded together, and the continuation begins where the tokens of
 * the context alone would end; spaces at the end of the context count as part of the continuation. Without a context, the prefix
 * token is the context, be it that the continuation begins with it.
 * @throws ArgumentError for a continuation without tokens
 */
export function encodeRequest(
  context: string,
  continuation: string,
  { tokenizer, addBosToken = false }: RequestEncoder,
): LoglikelihoodRequest {
  const ids = (text: string): number[] => tokenizer.encode(text, { addSpecialTokens: false });
  if (context === '') return split(ids(continuation), prefixToken(tokenizer), continuation);
  const before = stripEnd(context);
  const moved = context.slice(before.length) + continuation;
  const bos = addBosToken && tokenizer.bosId !== null ? [tokenizer.bosId] : [];
  const whole = [...bos, ...ids(before + moved)];
  const { length } = [...bos, ...ids(before)];
  if (length === 0) return split(whole, prefixToken(tokenizer), continuation);
  if (length >= whole.length) throw noTokens(continuation);
  return { context: whole.slice(0, length), continuation: whole.slice(length) };
}

/** The request for ids without a context. */
function split(ids: readonly number[], prefix: number, text: string): LoglikelihoodRequest {
  const rest = ids[0] === prefix ? ids.slice(1) : ids;
  if (rest.length === 0) throw noTokens(text);
  return { context: [prefix], continuation: rest };
}

function noTokens(text: string): ArgumentError {
  return new ArgumentError(
    `score: the answer ${JSON.stringify(text)} adds no token to its question; give it some text`,
  );
}

/**
 * Cuts ids on the left, so that at most maxLength of them are input of the model (the last one is only predicted).
 * @returns the request, and whether it was cut
 * @throws ArgumentError for a continuation that is longer than maxLength by itself
 */
export function fitRequest(
  { context, continuation }: LoglikelihoodRequest,
  maxLength: number,
): { readonly request: LoglikelihoodRequest; readonly isCut: boolean } {
  const room = maxLength + 1 - continuation.length;
  if (room < 1) {
    throw new ArgumentError(
      `score: an answer has ${continuation.length} tokens, more than the ${maxLength} that the model reads; leave this item out`,
    );
  }
  const isCut = context.length > room;
  return { request: { context: isCut ? context.slice(-room) : context, continuation }, isCut };
}

/**
 * Divides the ids of a text into windows that predict each id once. The first begins after the prefix token; a later one predicts the
 * next maxLength ids from the one before them; the last one has only the rest to predict, and sees as many earlier ids as there is
 * room for.
 * @param options prefix: the id before the text; maxLength: largest number of ids that are input of the model
 */
export function rollingWindows(
  ids: readonly number[],
  options: { readonly prefix: number; readonly maxLength: number },
): LoglikelihoodRequest[] {
  const { prefix, maxLength } = checkKeys('rollingWindows', options, 'prefix maxLength');
  const windows: LoglikelihoodRequest[] = [];
  for (let from = 0; from < ids.length; from += maxLength) {
    const to = Math.min(ids.length, from + maxLength);
    const context = from === 0 ? [prefix] : ids.slice(Math.max(0, to - 1 - maxLength), from);
    windows.push({ context, continuation: ids.slice(from, to) });
  }
  return windows;
}

/**
 * Examples: the ids of one text and which of them are supervised. The border between prompt and response is found on ids, by
 * the longest common prefix with the prompt alone: where the last characters of the prompt and the first of the response merge
 * into one token, that token is supervised.
 */
import { ArgumentError } from '../errors.ts';
import type { ChatMessage } from '../text/chat_template.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

/**
 * The ids of one text and which of them are supervised. Not shifted: `supervised[t]` says that id t is to be learned (predicted by
 * row t-1).
 */
export interface Example {
  readonly ids: Int32Array; // (T)
  readonly supervised: Uint8Array; // (T), 0 or 1
}

/** Number of ids that some row can learn to predict: the first id of a text has no row before it. */
export function supervisedCount(example: Example): number {
  let count = 0;
  for (let t = 1; t < example.supervised.length; t++) count += example.supervised[t] as number;
  return count;
}

/** Cuts an example to its first `maxLength` tokens. */
export function truncate(example: Example, maxLength: number): Example {
  if (example.ids.length <= maxLength) return example;
  return {
    ids: example.ids.slice(0, maxLength),
    supervised: example.supervised.slice(0, maxLength),
  };
}

/**
 * Encodes prompt + response + EOS, with the response and EOS supervised. Nothing is put between the two.
 * @throws ArgumentError if the tokenizer names no EOS token: the model would never learn to stop
 */
export function encodePromptResponse(
  tokenizer: Tokenizer,
  prompt: string,
  response: string,
): Example {
  if (tokenizer.eosId === null) {
    throw new ArgumentError(
      'tokenizer: no end-of-sequence token is named, responses could not end',
    );
  }
  const ids = tokenizer.encode(prompt + response);
  if (ids.at(-1) !== tokenizer.eosId) ids.push(tokenizer.eosId);
  const start = commonPrefix(tokenizer.encode(prompt), ids);
  return withSpans(ids, [[start, ids.length]]);
}

/**
 * Encodes a conversation through the model's chat template, with every assistant turn supervised from its first token to its
 * end-of-turn token (white space that the template writes after that is not).
 * @throws ArgumentError if there is no assistant turn, or the template hides where one begins or ends
 */
export function encodeConversation(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
): Example {
  const text = tokenizer.renderChat(messages);
  const encode = (part: string) => tokenizer.encode(part, { addSpecialTokens: false });
  const ids = encode(text);
  const spans: [number, number][] = [];
  messages.forEach((message, turn) => {
    if (message.role !== 'assistant') return;
    const [from, to] = turnInText(tokenizer, messages, turn, text);
    const start = commonPrefix(encode(text.slice(0, from)), ids);
    const through = encode(text.slice(0, to));
    const common = commonPrefix(through, ids);
    // A last token that merges with what follows belongs to the turn.
    const end = Math.min(ids.length, common < through.length ? common + 1 : common);
    spans.push([start, endOfTurn(tokenizer, ids, start, end)]);
  });
  if (spans.length === 0) throw new ArgumentError('messages: no assistant turn to learn from');
  return withSpans(ids, spans);
}

/**
 * Position of an assistant turn in the rendered text. The turn begins where a generation prompt after the earlier messages ends,
 * and ends where the conversation up to it ends. Templates that treat the last turn differently (Qwen3 leaves its thinking out of
 * earlier ones) are not prefixes of themselves: there the border is found by a mark put into the content.
 */
function turnInText(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
  turn: number,
  text: string,
): [number, number] {
  const earlier = messages.slice(0, turn);
  const before = tryRender(() => tokenizer.renderChat(earlier, { addGenerationPrompt: true }));
  // A template may have no generation prompt.
  const opens = before !== tryRender(() => tokenizer.renderChat(earlier));
  const from =
    opens && isPrefix(before, text)
      ? before.length
      : contentBorder(tokenizer, messages, turn, 'start', text);
  const through = tryRender(() => tokenizer.renderChat(messages.slice(0, turn + 1)));
  const to = isPrefix(through, text)
    ? through.length
    : contentBorder(tokenizer, messages, turn, 'end', text);
  if (from === null || to === null || to < from) {
    throw new ArgumentError(
      `messages: the chat template does not show where assistant turn ${turn} begins or ends`,
    );
  }
  return [from, to];
}

const kMark = '\u2042';

/**
 * The border of a turn's content: the position where the text first differs when a mark is put there; null if the mark
 * shows nowhere.
 */
function contentBorder(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
  turn: number,
  side: 'start' | 'end',
  text: string,
): number | null {
  const content = messages[turn]?.content;
  if (typeof content !== 'string' || content.includes(kMark)) return null;
  const marked = messages.map((message, i) =>
    i === turn
      ? { ...message, content: side === 'start' ? kMark + content : content + kMark }
      : message,
  );
  const rendered = tryRender(() => tokenizer.renderChat(marked));
  const at = rendered === null ? 0 : commonPrefix(rendered, text);
  return rendered?.[at] === kMark ? at : null;
}

/** The end of a turn that holds a special token with nothing but white space behind it: that token. */
function endOfTurn(tokenizer: Tokenizer, ids: number[], start: number, end: number): number {
  // The content's border stands before the end-of-turn token, which belongs to the turn as well.
  const next = ids[end];
  if (next !== undefined && next === tokenizer.eosId && ids[end - 1] !== tokenizer.eosId) end++;
  for (let last = end - 1; last >= start; last--) {
    if (!tokenizer.specialIds.has(ids[last] as number)) continue;
    return tokenizer.decode(ids.slice(last + 1, end)).trim() === '' ? last + 1 : end;
  }
  return end;
}

function tryRender(render: () => string): string | null {
  try {
    return render();
  } catch (error) {
    if (error instanceof ArgumentError) return null; // the template refuses a part of a conversation
    throw error;
  }
}

function isPrefix(part: string | null, text: string): part is string {
  return part !== null && text.startsWith(part);
}

function withSpans(ids: number[], spans: readonly [number, number][]): Example {
  const supervised = new Uint8Array(ids.length);
  for (const [start, end] of spans) supervised.fill(1, start, end);
  return { ids: new Int32Array(ids), supervised };
}

function commonPrefix<T>(a: ArrayLike<T>, b: ArrayLike<T>): number {
  const limit = Math.min(a.length, b.length);
  let n = 0;
  while (n < limit && a[n] === b[n]) n++;
  return n;
}

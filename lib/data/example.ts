/**
 * Examples: the ids of one text and which of them are supervised. The response begins after the longest common prefix of the ids
 * and those of the prompt alone: if the last characters of the prompt and the first of the response are merged into one token,
 * that token is supervised.
 */
import { ArgumentError } from '../errors.ts';
import { checkKeys } from '../options/call.ts';
import type { ChatMessage, RenderOptions } from '../text/chat_template.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

/**
 * The ids of one text and which of them are supervised. Not shifted: `supervised[t]` says that id t is to be learned (predicted by
 * row t-1).
 */
export interface Example {
  readonly ids: Int32Array; // (T)
  readonly supervised: Uint8Array; // (T), 0 or 1
  /** Number of answers that are empty, which are not supervised: the model would only learn to say nothing. Default 0. */
  readonly emptyAnswers?: number;
  /** Whether nothing is supervised because the row or the options say so of all its answers. Default false. */
  readonly isMasked?: boolean;
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
    ...example,
    ids: example.ids.slice(0, maxLength),
    supervised: example.supervised.slice(0, maxLength),
  };
}

/**
 * Encodes prompt + response + EOS, with the response and EOS supervised. Nothing is put between the two. An empty
 * response is not supervised.
 * @throws ArgumentError if the tokenizer names no EOS token: the model would never learn to stop
 */
export function encodePromptResponse(
  tokenizer: Tokenizer,
  prompt: string,
  response: string,
): Example {
  if (tokenizer.eosId === null) {
    throw new ArgumentError(
      'tokenizer: without an end-of-sequence token, responses could not end; name the eos_token in tokenizer_config.json',
    );
  }
  const ids = tokenizer.encode(prompt + response);
  if (ids.at(-1) !== tokenizer.eosId) ids.push(tokenizer.eosId);
  if (response.trim() === '') return { ...withSpans(ids, []), emptyAnswers: 1 };
  const start = commonPrefix(tokenizer.encode(prompt), ids);
  return withSpans(ids, [[start, ids.length]]);
}

/**
 * Encodes a text + EOS, all of which is supervised. An empty text is not.
 * @throws ArgumentError if the tokenizer names no EOS token
 */
export function encodeText(tokenizer: Tokenizer, text: string): Example {
  const example = encodePromptResponse(tokenizer, '', text);
  return example.emptyAnswers === undefined ? wholly(example) : example;
}

/** An example with all of its ids supervised, unless it has nothing to learn. */
export function wholly(example: Example): Example {
  if (!example.supervised.includes(1)) return example;
  return { ...example, supervised: new Uint8Array(example.ids.length).fill(1) };
}

/** Options of {@link encodeConversation}. */
export interface ConversationOptions extends Pick<RenderOptions, 'tools'> {
  /** Whether to train on each message; only those of the assistant ever are. Default: on all of them. */
  trains?: readonly boolean[];
}

/**
 * Encodes a conversation through the model's chat template, with every assistant message supervised from its first token to its
 * end-of-turn token; white space that the template writes after it is not supervised, and neither are empty messages.
 * @param options tools: descriptions of tools, for a template that knows them; trains: the messages to train on
 * @throws ArgumentError if there is no assistant message, if it cannot be found in the rendered text, or if the
 *   template ignores the tools
 */
export function encodeConversation(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
  options: ConversationOptions = {},
): Example {
  const { tools, trains } = checkKeys('encodeConversation', options, 'tools trains');
  const render: Render = (part, given = {}) => tokenizer.renderChat(part, { ...given, tools });
  const text = render(messages);
  if (tools !== undefined && text === tokenizer.renderChat(messages)) {
    throw new ArgumentError(
      "tools: the model's chat template does not use them; remove the field, or change chat_template.jinja",
    );
  }
  const encode = (part: string) => tokenizer.encode(part, { addSpecialTokens: false });
  const ids = encode(text);
  const spans: [number, number][] = [];
  let [emptyAnswers, masked] = [0, 0];
  messages.forEach((message, turn) => {
    if (message.role !== 'assistant') return;
    if (trains?.[turn] === false) masked++;
    else if (isEmptyAnswer(message)) emptyAnswers++;
    else {
      const [from, to] = turnSpan(render, messages, turn, text);
      const start = commonPrefix(encode(text.slice(0, from)), ids);
      const through = encode(text.slice(0, to));
      const common = commonPrefix(through, ids);
      // A last token that is merged with the following characters belongs to the message.
      const end = Math.min(ids.length, common < through.length ? common + 1 : common);
      spans.push([start, endOfTurn(tokenizer, ids, start, end)]);
    }
  });
  if (spans.length === 0 && emptyAnswers === 0 && masked === 0)
    throw new ArgumentError(
      'messages: no assistant message to learn from; add one, or remove the row',
    );
  return {
    ...withSpans(ids, spans),
    emptyAnswers: emptyAnswers || undefined,
    isMasked: (spans.length === 0 && emptyAnswers === 0) || undefined,
  };
}

/** Renders a conversation with the tools of its row. */
type Render = (messages: readonly ChatMessage[], options?: RenderOptions) => string;

/** Whether a message says nothing: no text, and no call of a tool. */
function isEmptyAnswer({ content, tool_calls: calls }: ChatMessage): boolean {
  if (Array.isArray(calls) && calls.length > 0) return false;
  return typeof content === 'string'
    ? content.trim() === ''
    : Array.isArray(content) && content.length === 0;
}

/**
 * The span of an assistant message in the rendered text. It begins where the generation prompt after the earlier messages ends, and
 * ends where the conversation up to and including it ends. Some templates render the last message differently (Qwen3 removes the
 * thinking from earlier ones), so that a part of the conversation is no prefix of the whole; then the boundary is found by a marker
 * in the message's content.
 */
function turnSpan(
  render: Render,
  messages: readonly ChatMessage[],
  turn: number,
  text: string,
): [number, number] {
  const earlier = messages.slice(0, turn);
  const before = tryRender(() => render(earlier, { addGenerationPrompt: true }));
  // A template may have no generation prompt.
  const opens = before !== tryRender(() => render(earlier));
  const from =
    opens && isPrefix(before, text)
      ? before.length
      : contentBoundary(render, messages, turn, 'start', text);
  const through = tryRender(() => render(messages.slice(0, turn + 1)));
  const to = isPrefix(through, text)
    ? through.length
    : contentBoundary(render, messages, turn, 'end', text);
  if (from === null || to === null || to < from) {
    throw new ArgumentError(
      `messages: the chat template does not show where assistant message ${turn} begins or ends; give the row a prompt ` +
        'and a response instead, or change chat_template.jinja',
    );
  }
  return [from, to];
}

const kMarker = '\u2042';

/**
 * The start or end of a message's content in the rendered text: the position at which the text changes when a marker is added to
 * the content there; null if the marker is not in the text.
 */
function contentBoundary(
  render: Render,
  messages: readonly ChatMessage[],
  turn: number,
  side: 'start' | 'end',
  text: string,
): number | null {
  const content = messages[turn]?.content;
  if (typeof content !== 'string' || content.includes(kMarker)) return null;
  const marked = messages.map((message, i) =>
    i === turn
      ? { ...message, content: side === 'start' ? kMarker + content : content + kMarker }
      : message,
  );
  const rendered = tryRender(() => render(marked));
  const at = rendered === null ? 0 : commonPrefix(rendered, text);
  return rendered?.[at] === kMarker ? at : null;
}

/** The end of the supervised ids of a message: after its last special token if only white space follows, else `end`. */
function endOfTurn(tokenizer: Tokenizer, ids: number[], start: number, end: number): number {
  // The content ends before the end-of-turn token, which is supervised as well.
  const next = ids[end];
  if (next !== undefined && next === tokenizer.eosId && ids[end - 1] !== tokenizer.eosId) end++;
  for (let last = end - 1; last >= start; last--) {
    if (!tokenizer.specialIds.has(ids[last] as number)) continue;
    return tokenizer.decode(ids.slice(last + 1, end)).trim() === '' ? last + 1 : end;
  }
  return end;
}

function tryRender(make: () => string): string | null {
  try {
    return make();
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

/**
 * Known chat formats, as the text of a conversation and as a Go template for Ollama, both made from one description. A tokenizer's
 * template is recognised by what it renders, not by its source, since many sources render the same.
 */
import { UnsupportedError } from '../errors.ts';
import type { ChatMessage } from '../text/chat_template.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

/** A format in which every message, the system's as well, is a turn of its own. */
interface TurnFormat {
  readonly name: string;
  readonly kind: 'turns';
  /** Text before a message, in which ROLE stands for its role. */
  readonly before: string;
  readonly after: string;
  /** Text before every turn but the first; left out: none. */
  readonly again?: string;
  /** Texts at which an answer ends. */
  readonly stops: readonly string[];
}

/** A format of user and assistant alone: the system's text is put before a user's, into its turn. */
interface FoldedFormat {
  readonly name: string;
  readonly kind: 'folded';
  readonly user: readonly [before: string, after: string];
  readonly assistant: readonly [before: string, after: string];
  readonly system: readonly [before: string, after: string];
  /** The user's turn that the system's text is put into. */
  readonly systemIn: 'first' | 'last';
  /** Text before every user's turn but the first. */
  readonly again: string;
  readonly stops: readonly string[];
}

/** A known chat format. */
export type ChatFormat = TurnFormat | FoldedFormat;

const kNoStart = '';
const mistral = (
  name: string,
  user: readonly [string, string],
  assistant: readonly [string, string],
  systemIn: 'first' | 'last',
): FoldedFormat => ({
  ...{ name, kind: 'folded', user, assistant, systemIn, again: kNoStart },
  system: ['', '\n\n'],
  stops: ['[INST]', '[/INST]'],
});

/** The formats, in the order in which they are tried. */
export const CHAT_FORMATS: readonly ChatFormat[] = [
  {
    ...{ name: 'chatml', kind: 'turns', before: '<|im_start|>ROLE\n', after: '<|im_end|>\n' },
    stops: ['<|im_start|>', '<|im_end|>'],
  },
  {
    ...{ name: 'llama-3', kind: 'turns', after: '<|eot_id|>' },
    before: '<|start_header_id|>ROLE<|end_header_id|>\n\n',
    stops: ['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'],
  },
  {
    ...{ name: 'llama-2', kind: 'folded', systemIn: 'first', again: '<s>' },
    user: ['[INST] ', ' [/INST]'],
    assistant: [' ', ' </s>'],
    system: ['<<SYS>>\n', '\n<</SYS>>\n\n'],
    stops: ['[INST]', '[/INST]', '<<SYS>>', '<</SYS>>'],
  },
  {
    ...{ name: 'gemma', kind: 'folded', systemIn: 'first', again: kNoStart },
    user: ['<start_of_turn>user\n', '<end_of_turn>\n<start_of_turn>model\n'],
    assistant: ['', '<end_of_turn>\n'],
    system: ['', '\n\n'],
    stops: ['<start_of_turn>', '<end_of_turn>'],
  },
  mistral('mistral (0.1)', ['[INST] ', ' [/INST]'], ['', '</s> '], 'first'),
  mistral('mistral (0.2)', [' [INST] ', ' [/INST]'], [' ', '</s>'], 'first'),
  mistral('mistral (0.2, no space)', ['[INST] ', ' [/INST]'], [' ', '</s>'], 'first'),
  mistral('mistral (0.3)', ['[INST] ', '[/INST]'], [' ', '</s>'], 'last'),
  mistral('mistral (tekken)', ['[INST]', '[/INST]'], ['', '</s>'], 'last'),
  {
    ...{ name: 'phi-3', kind: 'turns', before: '<|ROLE|>\n', after: '<|end|>\n' },
    stops: ['<|user|>', '<|assistant|>', '<|system|>', '<|end|>'],
  },
  {
    ...{ name: 'phi-4-mini', kind: 'turns', before: '<|ROLE|>', after: '<|end|>' },
    stops: ['<|user|>', '<|assistant|>', '<|system|>', '<|end|>'],
  },
  {
    ...{ name: 'phi-4', kind: 'turns', after: '<|im_end|>' },
    before: '<|im_start|>ROLE<|im_sep|>',
    stops: ['<|im_start|>', '<|im_sep|>', '<|im_end|>'],
  },
];

/** A message whose content is text. */
export interface TextMessage extends ChatMessage {
  readonly content: string;
}

/** The text of a conversation up to the beginning of the assistant's answer. */
export function renderFormat(format: ChatFormat, messages: readonly TextMessage[]): string {
  if (format.kind === 'turns') {
    const { again = '', after } = format;
    const before = (role: string): string => format.before.replaceAll('ROLE', role);
    const turns = messages.map(({ role, content }) => before(role) + content + after);
    return [...turns, before('assistant')].join(again);
  }
  const { user, assistant, system, systemIn, again } = format;
  const lastUser = messages.findLastIndex(({ role }) => role === 'user');
  let [pending, first, text] = ['', true, ''];
  for (const [i, { role, content }] of messages.entries()) {
    if (role === 'system') pending = system[0] + content + system[1];
    if (role === 'assistant') text += assistant[0] + content + assistant[1];
    if (role !== 'user') continue;
    const takes = systemIn === 'first' ? first : i === lastUser;
    text += (first ? '' : again) + user[0] + (takes ? pending : '') + content + user[1];
    first = false;
  }
  return text;
}

/** The format as a Go template over `.Messages`, as Ollama executes it. @param start text before everything */
export function goTemplate(format: ChatFormat, start = ''): string {
  if (format.kind === 'turns') {
    const before = (role: string): string => format.before.replaceAll('ROLE', role);
    const { again = '', after } = format;
    const range = again === '' ? 'range' : 'range $i, $m :=';
    const between = again === '' ? '' : `{{ if $i }}${again}{{ end }}`;
    return (
      `${start}{{- ${range} .Messages }}${between}${before('{{ .Role }}')}{{ .Content }}${after}{{ end }}` +
      `${again}${before('assistant')}`
    );
  }
  const { user, assistant, system, systemIn, again } = format;
  const withSystem = `${system[0]}{{ $system }}${system[1]}`;
  // The last message of a prompt is the user's.
  const takes = systemIn === 'first' ? '$first' : '(eq (len (slice $.Messages $i)) 1)';
  return (
    `${start}{{- $system := "" }}{{ $first := true }}{{ range $i, $m := .Messages }}` +
    '{{ if eq $m.Role "system" }}{{ $system = $m.Content }}{{ end }}' +
    `{{ if eq $m.Role "user" }}${again === '' ? '' : `{{ if not $first }}${again}{{ end }}`}${user[0]}` +
    `{{ if and $system ${takes} }}${withSystem}{{ end }}{{ $m.Content }}${user[1]}{{ $first = false }}{{ end }}` +
    `{{ if eq $m.Role "assistant" }}${assistant[0]}{{ $m.Content }}${assistant[1]}{{ end }}{{ end }}`
  );
}

/** The format without a text that its first turn begins with; null: it does not begin with it. */
export function withoutStart(format: ChatFormat, text: string): ChatFormat | null {
  if (format.kind === 'turns') {
    const { before, again = '' } = format;
    if (!before.startsWith(text)) return null;
    return { ...format, before: before.slice(text.length), again: again + text };
  }
  const { user, again } = format;
  if (!user[0].startsWith(text)) return null;
  return { ...format, user: [user[0].slice(text.length), user[1]], again: again + text };
}

/** A tokenizer's format, with what its template adds by itself. */
export interface FoundFormat {
  /** The format, without the BOS token that its first turn begins with where the runtime adds that. */
  readonly format: ChatFormat;
  /** Text at the beginning that the runtime does not add. */
  readonly start: string;
  /** The system's text where a conversation has none; null: nothing. */
  readonly defaultSystem: string | null;
}

const kSystem = 'balora-system-7';
const kUser: TextMessage = { role: 'user', content: 'balora-question-1' };
const kTurns: readonly TextMessage[] = [
  kUser,
  { role: 'assistant', content: 'balora-answer-1' },
  { role: 'user', content: 'balora-question-2' },
];
const withSystem = (content: string, messages: readonly TextMessage[]): TextMessage[] => [
  { role: 'system', content },
  ...messages,
];

/**
 * Finds the format of a tokenizer's chat template, by conversations with and without a system's text.
 * @throws UnsupportedError naming the known formats, for another one or none
 */
export function chatFormatOf(tokenizer: Tokenizer): FoundFormat {
  if (tokenizer.chatTemplate === null) {
    throw new UnsupportedError(
      'modelfile: the tokenizer has no chat template; put the chat_template.jinja of the model beside its tokenizer.json',
    );
  }
  const bos = tokenizer.bosId === null ? '' : tokenizer.token(tokenizer.bosId);
  const addsBos = tokenizer.bosId !== null && tokenizer.encode('a')[0] === tokenizer.bosId;
  const rendered = (messages: readonly TextMessage[]): string | null => {
    try {
      return tokenizer.renderChat(messages, { addGenerationPrompt: true });
    } catch {
      return null; // refused by the template, such as Gemma's with a system's text
    }
  };
  for (const format of CHAT_FORMATS) {
    // BOS stands before the format, or is the mark that its turns begin with, such as ChatML's in SmolLM2.
    for (const first of new Set(['', bos])) {
      const own = (messages: readonly TextMessage[]): string =>
        first + renderFormat(format, messages);
      const found = matching(rendered, own);
      if (found === null) continue;
      const cut = addsBos && first === '' ? withoutStart(format, bos) : null;
      return { format: cut ?? format, start: addsBos ? '' : first, ...found };
    }
  }
  throw new UnsupportedError(
    `modelfile: the model's chat template is none of ${CHAT_FORMATS.map(({ name }) => name).join(', ')}, so its TEMPLATE would be ` +
      'a guess; export to gguf, and write a Modelfile by hand',
  );
}

/** The system's text that a template adds by itself, where it renders as a format does; null: it renders something else. */
function matching(
  rendered: (messages: readonly TextMessage[]) => string | null,
  own: (messages: readonly TextMessage[]) => string,
): Pick<FoundFormat, 'defaultSystem'> | null {
  for (const messages of [withSystem(kSystem, [kUser]), withSystem(kSystem, kTurns)]) {
    const text = rendered(messages);
    if (text !== null && text !== own(messages)) return null;
  }
  const text = rendered([kUser]);
  if (text === null) return null;
  const defaultSystem =
    text === own([kUser]) ? null : systemIn(text, own(withSystem(kSystem, [kUser])));
  const all = defaultSystem === null ? kTurns : withSystem(defaultSystem, kTurns);
  return rendered(kTurns) === own(all) ? { defaultSystem } : null;
}

/** The text that stands in `text` where `pattern` has the probe's system text; null: they differ elsewhere. */
function systemIn(text: string, pattern: string): string | null {
  const [before, after] = pattern.split(kSystem) as [string, string];
  if (!text.startsWith(before) || !text.endsWith(after)) return null;
  return text.slice(before.length, text.length - after.length);
}

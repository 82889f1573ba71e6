/**
 * Rows in Alpaca's form: `instruction` and `output`, and optionally `input`, `system` and `history` (earlier turns as pairs). A text
 * template gets what it names; with the chat template all of it becomes messages.
 */
import { ArgumentError } from '../../errors.ts';
import { shown } from '../../shown.ts';
import type { ChatMessage } from '../../text/chat_template.ts';
import { fieldText, kInputTemplate, kRecipeTemplate, PromptTemplate } from '../prompt_template.ts';
import type { Row } from '../rows.ts';
import { has, listValue, optionalText, toolsOf } from './fields.ts';
import type { FormReader, RowForm } from './form.ts';

const kPrompt = 'instruction';
const kResponse = 'output';

export const alpaca: RowForm = {
  name: 'alpaca',
  needs: 'instruction and output',
  options: ['promptField', 'responseField'],
  find(row, { promptField = kPrompt, responseField = kResponse, promptsOnly = false }) {
    if (promptField !== kPrompt || responseField !== kResponse) return null;
    if (!has(row, kPrompt) || !(promptsOnly || Object.hasOwn(row, kResponse))) return null;
    return readerFor(row);
  },
};

function readerFor(firstRow: Row): FormReader {
  const extra = ['input', 'system', 'history'].filter((field) => Object.hasOwn(firstRow, field));
  const prompts = [kPrompt, ...extra];
  return {
    description: `${prompts.join(' + ')} -> ${kResponse}`,
    columns: [...prompts, kResponse],
    conversation: (row) => {
      const messages: ChatMessage[] = [];
      const system = optionalText(row, 'system');
      if (system !== '') messages.push({ role: 'system', content: system });
      for (const [user, assistant] of historyOf(row)) {
        messages.push({ role: 'user', content: user }, { role: 'assistant', content: assistant });
      }
      messages.push({ role: 'user', content: promptOf(row) });
      if (has(row, kResponse)) {
        messages.push({ role: 'assistant', content: fieldText(row, kResponse) });
      }
      return { marked: messages.map((message) => ({ message })), tools: toolsOf(row) };
    },
    pair: { prompt: textPrompt, response: (row) => fieldText(row, kResponse) },
  };
}

const kWithInput = new PromptTemplate(kInputTemplate);

/**
 * The prompt through a template, in which `{prompt}` stands for instruction and input.
 * @throws ArgumentError for an input, a system's message, a history or tools that the template would leave out
 */
function textPrompt(row: Row, given: PromptTemplate | null): string {
  const hasInput = optionalText(row, 'input') !== '';
  // Alpaca has a template of its own for rows with an input.
  const template = hasInput && given?.source === kRecipeTemplate ? kWithInput : given;
  const read = (field: string) => template?.names(field) ?? false;
  const isWhole = template === null || (read('prompt') && !has(row, 'prompt'));
  const lost = [
    ...(hasInput && !isWhole && !read('input') ? ['input'] : []),
    ...(optionalText(row, 'system') !== '' && !read('system') ? ['system'] : []),
    ...(historyOf(row).length > 0 ? ['history'] : []),
    ...(toolsOf(row) !== undefined ? ['tools'] : []),
  ];
  if (lost.length > 0) {
    const places = lost.filter((field) => field === 'input' || field === 'system');
    const other =
      places.length < lost.length ? '' : `, or a template with {${places.join('} and {')}}`;
    throw new ArgumentError(
      `field '${lost.join("', '")}' would be left out by the prompt template; use promptTemplate: 'chat'${other}`,
    );
  }
  if (template === null) return promptOf(row);
  return template.fill(has(row, 'prompt') ? row : { ...row, prompt: promptOf(row) }, kPrompt);
}

/** Instruction and input, on lines of their own. */
function promptOf(row: Row): string {
  const input = optionalText(row, 'input');
  const instruction = fieldText(row, kPrompt);
  return input === '' ? instruction : `${instruction}\n${input}`;
}

/** The earlier turns of a row. @throws ArgumentError for anything but pairs of texts */
function historyOf(row: Row): readonly (readonly [user: string, assistant: string])[] {
  const history = listValue(row, 'history') ?? null;
  if (history === null || history === '') return [];
  const isPair = (pair: unknown): boolean =>
    Array.isArray(pair) && pair.length === 2 && pair.every((text) => typeof text === 'string');
  if (Array.isArray(history) && history.every(isPair)) return history;
  throw new ArgumentError(
    `field 'history' must be a list of pairs of texts, [instruction, output], got ${shown(history, 60)}`,
  );
}

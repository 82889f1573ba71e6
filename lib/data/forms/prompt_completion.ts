/**
 * Rows with a prompt and a response, under the names of public data sets or those that the options give. Both are texts, or (as in TRL)
 * lists of messages, which become one conversation whose prompt is not trained on.
 */
import { ArgumentError } from '../../errors.ts';
import { isObject } from '../../options/option.ts';
import { fieldText } from '../prompt_template.ts';
import type { Row } from '../rows.ts';
import { has, listValue, messagesOf, toolsOf } from './fields.ts';
import type { Conversation, FindOptions, FormReader, RowForm } from './form.ts';

/** Field names of public data sets for prompt and response, tried in this order. */
const kKnownPairs = [
  ['query', 'response'],
  ['query', 'answer'],
  ['question', 'answer'],
  ['prompt', 'completion'],
  ['prompt', 'response'],
  ['human', 'assistant'],
] as const;

export const promptCompletion: RowForm = {
  name: 'prompt-completion',
  needs: 'a prompt and a response, such as prompt and completion',
  options: ['promptField', 'responseField', 'roleMap'],
  find(row, options): FormReader | null {
    const fields = fieldsIn(row, options);
    if (fields === null) return null;
    const [prompt, response] = fields;
    const ofMessages = prompt !== null && hasMessages(row, prompt);
    const description = `${prompt ?? 'template'} -> ${response}`;
    const columns = [...(prompt === null ? [] : [prompt]), response];
    return ofMessages
      ? { description, columns, conversation: (given) => joined(given, prompt, response, options) }
      : { description, columns, ...textReader(prompt, response) };
  },
};

function textReader(prompt: string | null, response: string): Partial<FormReader> {
  return {
    pair: {
      prompt: (row, template) => {
        if (toolsOf(row) !== undefined) {
          throw new ArgumentError(
            "field 'tools' is for a chat template; use promptTemplate: 'chat', or remove the field",
          );
        }
        return template === null ? fieldText(row, prompt as string) : template.fill(row, prompt);
      },
      response: (row) => fieldText(row, response),
    },
    conversation: (row) => {
      const messages = [
        { role: 'user', content: fieldText(row, prompt as string) },
        ...(has(row, response) ? [{ role: 'assistant', content: fieldText(row, response) }] : []),
      ];
      return { marked: messages.map((message) => ({ message })), tools: toolsOf(row) };
    },
  };
}

/** A prompt and a completion that are messages, as one conversation. */
function joined(
  row: Row,
  prompt: string,
  completion: string,
  { roleMap }: FindOptions,
): Conversation {
  const before = messagesOf(row, prompt, roleMap);
  const after = has(row, completion) ? messagesOf(row, completion, roleMap) : [];
  const marked = before.find(({ trained }) => trained === true);
  if (marked !== undefined) {
    throw new ArgumentError(
      `field '${prompt}' has a message that is marked to be trained on; move it to '${completion}'`,
    );
  }
  return { marked: [...before, ...after], asked: before.length, tools: toolsOf(row) };
}

/** The fields of the prompt (null if the template names its own fields) and of the response; null where the row has none. */
function fieldsIn(
  row: Row,
  { promptField, responseField, hasTemplate = false, promptsOnly = false }: FindOptions,
): [string | null, string] | null {
  for (const field of [promptField, responseField]) {
    if (field !== undefined && !promptsOnly) requireField(row, field);
  }
  if (promptField !== undefined && responseField !== undefined) return [promptField, responseField];
  const pair = kKnownPairs.find(
    ([p, r]) =>
      Object.hasOwn(row, promptField ?? p) &&
      (promptsOnly || Object.hasOwn(row, responseField ?? r)) &&
      (promptField === undefined || p === promptField) &&
      (responseField === undefined || r === responseField),
  );
  if (pair) return [...pair];
  if (promptsOnly && promptField !== undefined) return [promptField, ''];
  if (hasTemplate && (responseField !== undefined || promptsOnly))
    return [null, responseField ?? ''];
  return null;
}

/** Refuses a row without a field that was named, or whose value is neither a text nor a list of messages. */
function requireField(row: Row, field: string): void {
  if (!hasMessages(row, field)) fieldText(row, field);
}

/** Whether a field is a list of messages. A text that happens to be JSON, such as a list of numbers, is a text. */
function hasMessages(row: Row, field: string): boolean {
  const value = listValue(row, field);
  return Array.isArray(value) && isObject(value[0]);
}

/**
 * Conversations in ShareGPT's form: `conversations`, each message with `from` and `value`, with the columns `system` and `tools`. The
 * roles are those of LLaMA-Factory and of public data sets; other ones are named with `roleMap`.
 */
import { ArgumentError } from '../../errors.ts';
import { didYouMean, nearest } from '../../nearest.ts';
import { isObject } from '../../options/option.ts';
import { shown } from '../../shown.ts';
import type { ChatMessage } from '../../text/chat_template.ts';
import type { Row } from '../rows.ts';
import { has, list, marksOf, optionalText, toolsOf } from './fields.ts';
import type { FormReader, MarkedMessage, RowForm } from './form.ts';
import { conversationField, isOfShareGpt } from './messages.ts';

/** The calls of tools, whose value is JSON with a name and arguments. */
const kCall = 'function_call';

/** The chat template's role for each known value of `from`. */
const kRoles: Readonly<Record<string, string>> = {
  human: 'user',
  user: 'user',
  gpt: 'assistant',
  chatgpt: 'assistant',
  bing: 'assistant',
  bard: 'assistant',
  assistant: 'assistant',
  model: 'assistant',
  [kCall]: 'assistant',
  system: 'system',
  observation: 'tool',
  tool: 'tool',
  function_response: 'tool',
};

export const sharegpt: RowForm = {
  name: 'sharegpt',
  needs: 'conversations, a list of from and value',
  options: ['messagesField', 'roleMap'],
  find(row, { messagesField, roleMap = {} }): FormReader | null {
    const field = conversationField(row, messagesField, isOfShareGpt);
    if (field === undefined) return null;
    const roles = { ...kRoles, ...roleMap };
    return {
      description: field,
      columns: [field, ...(has(row, 'system') ? ['system'] : [])],
      conversation: (given) => {
        const marked = [
          ...systemOf(given),
          ...list(given, field).map((value, i) => turnOf(value, `${field}[${i}]`, roles)),
        ];
        const second = marked.slice(1).findIndex(({ message }) => message.role === 'system');
        if (second === 0 && optionalText(given, 'system') !== '') {
          throw new ArgumentError(
            `field 'system' and ${field}[0] both give the system's message; keep one of them`,
          );
        }
        return { marked, tools: toolsOf(given) };
      },
    };
  },
};

/** The message of the column `system`, if the row has one. */
function systemOf(row: Row): MarkedMessage[] {
  const content = optionalText(row, 'system');
  return content === '' ? [] : [{ message: { role: 'system', content } }];
}

function turnOf(
  value: unknown,
  where: string,
  roles: Readonly<Record<string, string>>,
): MarkedMessage {
  const { from, value: content = null, ...rest } = isObject(value) ? value : {};
  if (typeof from !== 'string') {
    const has = isObject(value) && Object.hasOwn(value, 'role') ? ' but a role' : '';
    throw new ArgumentError(
      `${where} has no from${has}; write every message of the conversation with from and value`,
    );
  }
  const role = Object.hasOwn(roles, from) ? roles[from] : undefined;
  if (role === undefined) {
    throw new ArgumentError(
      `${where}: ${shown(from, 40)} is no known role${didYouMean(nearest(from, Object.keys(roles)))}; name the chat template's role for it with roleMap`,
    );
  }
  if (typeof content !== 'string') {
    throw new ArgumentError(
      `${where}.value must be text, got ${shown(content, 40)}; complete it, or remove the message or the row`,
    );
  }
  const { more, trained } = marksOf(rest, where, role);
  const message: ChatMessage = { role, content, ...more };
  return { message: from === kCall ? withCalls(message, content, where) : message, trained };
}

/** A message that calls tools. @throws ArgumentError where its value is no JSON of calls */
function withCalls(message: ChatMessage, json: string, where: string): ChatMessage {
  let calls: unknown;
  try {
    calls = JSON.parse(json);
  } catch {
    calls = null;
  }
  const all = Array.isArray(calls) ? calls : [calls];
  if (!all.every((call) => isObject(call) && typeof call.name === 'string')) {
    throw new ArgumentError(
      `${where}.value must be JSON of a tool's call, {"name": ..., "arguments": ...} or a list of them, got ${shown(json, 60)}`,
    );
  }
  return {
    ...message,
    content: '',
    tool_calls: all.map((call) => ({ type: 'function', function: call })),
  };
}

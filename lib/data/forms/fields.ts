/** Fields of rows that several forms have: lists, messages, tools, and the marks of the messages that are trained on. */
import { ArgumentError } from '../../errors.ts';
import { isObject } from '../../options/option.ts';
import { shown } from '../../shown.ts';
import { type ChatMessage, misspeltRole } from '../../text/chat_template.ts';
import type { Row } from '../rows.ts';
import type { MarkedMessage } from './form.ts';

/** Whether a row has a value in a field. */
export function has(row: Row, field: string): boolean {
  return Object.hasOwn(row, field) && row[field] !== null && row[field] !== undefined;
}

/** Names of the fields of a row, for messages. */
export function fieldNames(row: Row): string {
  return Object.keys(row).join(', ') || 'none';
}

/** The value of a field, in which a text that is a JSON list (as in CSV files) becomes a list. */
export function listValue(row: Row, field: string): unknown {
  const value = Object.hasOwn(row, field) ? row[field] : undefined;
  if (typeof value !== 'string' || !/^\s*\[/.test(value)) return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

/** A field that is a list. @throws ArgumentError where it is missing or something else */
export function list(row: Row, field: string): readonly unknown[] {
  const value = listValue(row, field);
  if (Array.isArray(value)) return value;
  throw new ArgumentError(
    value === undefined
      ? `no field '${field}' (fields: ${fieldNames(row)}); every row needs it where the first has it`
      : `field '${field}' must be an array, got ${shown(value, 40)}`,
  );
}

/** A field that is a text and may be missing or empty. @throws ArgumentError for anything else */
export function optionalText(row: Row, field: string): string {
  if (!has(row, field)) return '';
  const value = row[field];
  if (typeof value === 'string') return value;
  throw new ArgumentError(`field '${field}' must be text, got ${shown(value, 40)}`);
}

/** The descriptions of tools in a row; none for null, an empty text or an empty list. @throws ArgumentError for another value */
export function toolsOf(row: Row): unknown[] | undefined {
  const tools = listValue(row, 'tools') ?? null;
  if (tools === null || tools === '') return undefined;
  if (!Array.isArray(tools)) {
    throw new ArgumentError(
      `field 'tools' must be a list of descriptions, got ${shown(tools, 40)}`,
    );
  }
  return tools.length === 0 ? undefined : tools;
}

/**
 * A message with a role and content, without keys whose value is null (as rows of Parquet files have) and without its marks. A
 * message that only calls tools may have no content, which is then an empty text.
 * @param where the message: `messages[2]`
 */
export function messageOf(
  value: unknown,
  where: string,
  roleMap: Readonly<Record<string, string>> = {},
): MarkedMessage {
  if (isObject(value) && Object.hasOwn(value, 'from')) {
    throw new ArgumentError(
      `${where} has from in the place of role: a conversation has messages of one form, role and content or from and value`,
    );
  }
  const { role, content = null, ...rest } = (isObject(value) ? value : {}) as ChatMessage;
  if (typeof role !== 'string') {
    throw new ArgumentError(`${where} has no role; give it one, such as user or assistant`);
  }
  const mapped = roleOf(role, where, roleMap);
  const { more, trained } = marksOf(rest, where, mapped);
  const { tool_calls: calls } = more;
  if (content === null && (!Array.isArray(calls) || calls.length === 0)) {
    throw new ArgumentError(
      `${where} (${role}) has no content; give it a text, or remove the message or the row`,
    );
  }
  return { message: { role: mapped, content: content ?? '', ...more }, trained };
}

/**
 * The chat template's role for a role of the data. Any role may be one that the template knows, but a misspelt one is refused.
 * @throws ArgumentError naming the role that is meant
 */
function roleOf(role: string, where: string, roleMap: Readonly<Record<string, string>>): string {
  if (Object.hasOwn(roleMap, role)) return roleMap[role] as string;
  const meant = misspeltRole(role);
  if (meant === null) return role;
  throw new ArgumentError(
    `${where}.role is ${shown(role, 40)}, which is not known (did you mean "${meant}"?); correct it, or name the template's role for it ` +
      'with roleMap',
  );
}

/**
 * Separates the marks of a message from its other keys: `train`, true or false, and `weight`, 1 or 0.
 * @throws ArgumentError for another value, for two that contradict each other, and for a message that is marked as trained on although
 *   it is not the assistant's
 */
export function marksOf(
  { train = null, weight = null, ...rest }: Readonly<Record<string, unknown>>,
  where: string,
  role: string,
): { more: Record<string, unknown>; trained: boolean | undefined } {
  if (train !== null && typeof train !== 'boolean') {
    throw new ArgumentError(`${where}.train must be true or false, got ${shown(train, 40)}`);
  }
  if (weight !== null && weight !== 0 && weight !== 1) {
    throw new ArgumentError(
      `${where}.weight must be 0 (not trained on) or 1, got ${shown(weight, 40)}`,
    );
  }
  const marks = [train, weight === null ? null : weight === 1].filter((mark) => mark !== null);
  if (new Set(marks).size > 1) {
    throw new ArgumentError(`${where}: train and weight contradict each other; keep one of them`);
  }
  const [trained] = marks as boolean[];
  if (trained === true && role !== 'assistant') {
    throw new ArgumentError(
      `${where} (${role}) is marked to be trained on, and only messages of the assistant are; remove the mark, or train on everything with trainOnTurns: 'all'`,
    );
  }
  const more = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== null));
  return { more, trained };
}

/** The messages of a field. */
export function messagesOf(
  row: Row,
  field: string,
  roleMap?: Readonly<Record<string, string>>,
): MarkedMessage[] {
  return list(row, field).map((value, i) => messageOf(value, `${field}[${i}]`, roleMap));
}

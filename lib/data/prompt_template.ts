/**
 * Prompt templates: text with `{field}` placeholders; `{{` and `}}` stand for braces. `{instruction}` and `{prompt}` stand for the
 * prompt field whatever its name, unless the row has a field of that name.
 */
import { ArgumentError } from '../errors.ts';
import { checkArgument, kCall } from '../options/call.ts';
import { shown } from '../shown.ts';
import type { Row } from './rows.ts';

/** The prompt of the BA-LoRA recipe (and of Alpaca and PiSSA). */
export const kRecipeTemplate =
  'Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n' +
  '### Instruction:\n{instruction}\n\n### Response:';

/** The prompt of Alpaca for a row that has an input, too. */
export const kInputTemplate =
  'Below is an instruction that describes a task, paired with an input that provides further context. ' +
  'Write a response that appropriately completes the request.\n\n' +
  '### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:';

/** The name that stands for the model's own chat template in the place of a template. */
export const kChatTemplateName = 'chat';

/** Templates that can be given by name. */
export const kNamedTemplates: Readonly<Record<string, string>> = {
  alpaca: kRecipeTemplate,
  none: '{prompt}',
};

const kAliases = new Set(['instruction', 'prompt']);

type TemplatePart = { text: string } | { field: string };

/** A text with `{field}` placeholders that are filled from a row. */
export class PromptTemplate {
  private readonly parts: TemplatePart[];
  /** The text of the template, also where it was given by name. */
  readonly source: string;
  /** The fields that the template has placeholders for. */
  readonly fields: ReadonlySet<string>;

  /**
   * Parses a template.
   * @param source a template, or the name of one in `kNamedTemplates`
   * @throws ArgumentError for unbalanced braces, or a template without a placeholder
   */
  constructor(source: string) {
    checkArgument('prompt template: it', kCall.text, source);
    this.source = Object.hasOwn(kNamedTemplates, source)
      ? (kNamedTemplates[source] as string)
      : source;
    this.parts = parse(this.source);
    this.fields = new Set(this.parts.flatMap((part) => ('field' in part ? [part.field] : [])));
    if (this.fields.size === 0) {
      throw new ArgumentError(
        `prompt template: must hold a {field}, or be one of the names ${Object.keys(kNamedTemplates).join(', ')}, ` +
          `got ${shown(source)}`,
      );
    }
  }

  /** Whether the template has a placeholder for a field. */
  names(field: string): boolean {
    return this.fields.has(field);
  }

  /**
   * Fills the only field, whatever its name, with a prompt.
   * @throws ArgumentError where there are several
   */
  fillWith(prompt: string): string {
    const fields = [...this.fields];
    const [field = ''] = fields;
    if (fields.every((name) => kAliases.has(name))) return this.fill({ prompt }, 'prompt');
    if (fields.length === 1) return this.fill({ [field]: prompt }, null);
    throw new ArgumentError(
      `prompt template: it has the fields ${fields.join(', ')}, of which a prompt alone fills one; ` +
        'write the others into its text',
    );
  }

  /** Fills the placeholders from a row. @throws ArgumentError where the row lacks a field */
  fill(row: Row, promptField: string | null): string {
    return this.parts
      .map((part) => {
        if ('text' in part) return part.text;
        const { field } = part;
        const isAlias = kAliases.has(field) && !Object.hasOwn(row, field) && promptField !== null;
        return fieldText(row, isAlias ? promptField : field);
      })
      .join('');
  }
}

/**
 * A field as text: strings as they are, numbers and booleans as JSON writes them.
 * @throws ArgumentError naming the fields that the row has
 */
export function fieldText(row: Row, field: string): string {
  const value = Object.hasOwn(row, field) ? row[field] : undefined;
  if (typeof value === 'string') return value;
  if (typeof value === 'number' || typeof value === 'boolean') return String(value);
  if (value === undefined) {
    const names = Object.keys(row);
    throw new ArgumentError(
      `no field '${field}' (fields: ${names.length ? names.join(', ') : 'none'}); add it to the row, or name another field`,
    );
  }
  const kind = value === null ? 'null' : Array.isArray(value) ? 'an array' : 'an object';
  throw new ArgumentError(`field '${field}' must be text, got ${kind}`);
}

function parse(source: string): TemplatePart[] {
  const parts: TemplatePart[] = [];
  let text = '';
  for (let i = 0; i < source.length; i++) {
    const char = source.charAt(i);
    if ((char === '{' || char === '}') && source[i + 1] === char) {
      text += char;
      i++;
    } else if (char === '{') {
      const end = source.indexOf('}', i);
      const field = end < 0 ? '' : source.slice(i + 1, end).trim();
      if (field === '' || field.includes('{')) {
        throw new ArgumentError(
          `prompt template: '{' at ${i} opens no field; write {{ for a brace`,
        );
      }
      if (text) parts.push({ text });
      text = '';
      parts.push({ field });
      i = end;
    } else if (char === '}') {
      throw new ArgumentError(`prompt template: '}' at ${i} closes nothing; write }} for a brace`);
    } else {
      text += char;
    }
  }
  if (text) parts.push({ text });
  return parts;
}

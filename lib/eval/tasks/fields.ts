/** Fields of a row of a task's data, whose types are checked where they are read. */
import type { Row } from '../../data/rows.ts';
import { ArgumentError } from '../../errors.ts';
import { checkKeys } from '../../options/call.ts';
import { isObject } from '../../options/option.ts';
import { shown } from '../../shown.ts';

const kShownCharacters = 60;

/** The fields of a row. */
export class Fields {
  constructor(private readonly row: Row) {}

  /** Whether the row has all of these fields. */
  has(...names: readonly string[]): boolean {
    return names.every((name) => Object.hasOwn(this.row, name));
  }

  /** A field of any type. @throws ArgumentError where there is none */
  value(name: string): unknown {
    if (this.has(name)) return this.row[name];
    throw new ArgumentError(
      `there is no field "${name}"; the row has ${Object.keys(this.row).join(', ')}`,
    );
  }

  /** A text. @throws ArgumentError for anything else, or an empty one unless that is allowed */
  text(name: string, options: { mayBeEmpty?: boolean } = {}): string {
    const { mayBeEmpty = false } = checkKeys('text', options, 'mayBeEmpty');
    const value = this.value(name);
    if (typeof value !== 'string') throw this.wrong(name, 'a text');
    if (value === '' && !mayBeEmpty) throw this.wrong(name, 'a text that is not empty');
    return value;
  }

  /** A text, a number, or true or false, as a text. @throws ArgumentError for anything else */
  word(name: string): string {
    const value = this.value(name);
    if (['string', 'number', 'bigint', 'boolean'].includes(typeof value)) return String(value);
    throw this.wrong(name, 'a text or a number');
  }

  /** A list of at least two texts, or of another number. @throws ArgumentError for anything else */
  texts(name: string, options: { least?: number } = {}): readonly string[] {
    const { least = 2 } = checkKeys('texts', options, 'least');
    const value = this.value(name);
    if (!Array.isArray(value) || value.length < least || !value.every(isText)) {
      const count = ['', 'one text', 'two texts'][least] ?? `${least} texts`;
      const wanted = least === 0 ? 'a list of texts' : `a list of at least ${count}`;
      throw this.wrong(name, `${wanted} that are not empty`);
    }
    return value;
  }

  /** An index below `count`, as a number or as digits. @throws ArgumentError for anything else */
  index(name: string, count: number): number {
    const value = this.value(name);
    const isDigits = typeof value === 'string' && /^\d+$/.test(value);
    const index = isDigits || typeof value === 'bigint' ? Number(value) : value;
    if (Number.isInteger(index) && (index as number) >= 0 && (index as number) < count) {
      return index as number;
    }
    throw this.wrong(name, `a whole number from 0 to ${count - 1}`);
  }

  /** A whole number, also as digits. @throws ArgumentError for anything else */
  whole(name: string): number {
    const value = this.value(name);
    const isDigits = typeof value === 'string' && /^-?\d+$/.test(value);
    const number = isDigits || typeof value === 'bigint' ? Number(value) : value;
    if (Number.isSafeInteger(number)) return number as number;
    throw this.wrong(name, 'a whole number');
  }

  /** A field that has fields of its own. @throws ArgumentError for anything else */
  nested(name: string): Fields {
    const value = this.value(name);
    if (isObject(value)) return new Nested(name, value);
    throw this.wrong(name, 'an object');
  }

  /** The error for a field with a wrong value. */
  wrong(name: string, wanted: string): ArgumentError {
    const found = shown(
      Object.hasOwn(this.row, name) ? this.row[name] : undefined,
      kShownCharacters,
    );
    return new ArgumentError(`field "${this.path(name)}" must be ${wanted}, got ${found}`);
  }

  /** The name of a field in messages. */
  protected path(name: string): string {
    return name;
  }
}

/** The fields of a field. */
class Nested extends Fields {
  constructor(
    private readonly parent: string,
    row: Row,
  ) {
    super(row);
  }

  protected override path(name: string): string {
    return `${this.parent}.${name}`;
  }
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

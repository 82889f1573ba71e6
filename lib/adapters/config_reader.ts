/** Reading the values of an adapter's configuration: types, ranges, and complaints that name the key and the value. */
import { ArgumentError } from '../errors.ts';
import type { StartFunction } from './starts.ts';

/** A configuration as it came, in snake case. */
export type Raw = Record<string, unknown>;

/** Typed reading of one raw configuration; every complaint names the key and the value. */
export class ConfigReader {
  constructor(
    private readonly raw: Raw,
    private readonly where: string,
  ) {}

  fail(key: string, wanted: string, value: unknown): never {
    throw new ArgumentError(
      `${this.where}: ${key} must be ${wanted}, got ${JSON.stringify(value)}`,
    );
  }

  rank(key: string, value: unknown): number {
    if (!Number.isSafeInteger(value) || (value as number) < 1)
      this.fail(key, 'a whole number >= 1', value);
    return value as number;
  }

  number(key: string, value: unknown): number {
    if (typeof value !== 'number' || !Number.isFinite(value))
      this.fail(key, 'a finite number', value);
    return value;
  }

  flag(key: string, fallback: boolean): boolean {
    const value = this.raw[key] ?? fallback;
    if (typeof value !== 'boolean') this.fail(key, 'true or false', value);
    return value;
  }

  text(key: string): string | null {
    const value = this.raw[key] ?? null;
    if (value !== null && typeof value !== 'string') this.fail(key, 'a string or null', value);
    return value;
  }

  dropout(): number {
    const value = this.number('lora_dropout', this.raw.lora_dropout ?? 0);
    if (value < 0 || value >= 1) this.fail('lora_dropout', 'in [0, 1)', value);
    return value;
  }

  names(key: string): readonly string[] | string | null {
    const value = this.raw[key] ?? null;
    if (value === null || typeof value === 'string') return value;
    if (!isNames(value)) this.fail(key, 'a string or a list of names', value);
    return Object.freeze([...new Set(value)]);
  }

  list(key: string): readonly string[] | null {
    const value = this.raw[key] ?? null;
    if (value === null) return null;
    if (!isNames(value)) this.fail(key, 'a list of names', value);
    return Object.freeze([...value]);
  }

  pattern(
    key: string,
    check: (key: string, value: unknown) => number,
  ): readonly (readonly [string, number])[] {
    const value = this.raw[key] ?? {};
    if (typeof value !== 'object') this.fail(key, 'an object of numbers', value);
    // A configuration that was checked before holds pairs: it can be given again.
    const entries: [string, unknown][] = Array.isArray(value) ? value : Object.entries(value);
    if (!entries.every((entry) => Array.isArray(entry) && typeof entry[0] === 'string')) {
      this.fail(key, 'an object of numbers', value);
    }
    return Object.freeze(
      entries.map(([name, item]) => [name, check(`${key}["${name}"]`, item)] as const),
    );
  }

  layers(): readonly number[] | null {
    const value = this.raw.layers_to_transform ?? null;
    if (value === null) return null;
    const list: unknown[] = Array.isArray(value) ? value : [value];
    if (list.some((item) => !Number.isSafeInteger(item) || (item as number) < 0)) {
      this.fail('layers_to_transform', 'a block number or a list of them', value);
    }
    return Object.freeze(list as number[]);
  }

  init(): boolean | string | StartFunction {
    const value = this.raw.init_lora_weights ?? true;
    if (typeof value === 'function') return value as StartFunction;
    if (typeof value !== 'boolean' && typeof value !== 'string')
      this.fail('init_lora_weights', 'a flag, a name or a function', value);
    return value === 'lora' ? true : value;
  }
}

function isNames(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((name) => typeof name === 'string' && name !== '');
}

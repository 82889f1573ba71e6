/** The preset of a method, overridden by the caller's settings: a method only fills in what was left open. */
import { ArgumentError } from '../../errors.ts';
import { camel, suggestion } from '../../options/option.ts';
import { shown } from '../../shown.ts';
import type { LoraConfigInput } from '../config.ts';
import { METHOD_NAMES, METHODS, type MethodName, REFUSED_METHODS } from './registry.ts';

/** Refuses an unknown method name, which a JavaScript program may pass. @throws ArgumentError with all names */
export function checkMethodName(name: MethodName): void {
  if (typeof name === 'string' && Object.hasOwn(METHODS, name)) return;
  if (typeof name === 'string' && Object.hasOwn(REFUSED_METHODS, name)) {
    throw new ArgumentError(`method ${name} ${REFUSED_METHODS[name]}`);
  }
  throw new ArgumentError(
    `method must be one of ${METHOD_NAMES.join(', ')}, got ${shown(name)}${suggestion(name, METHOD_NAMES)}`,
  );
}

/**
 * The adapter's settings under a method's name; null for full fine-tuning, which has none.
 * @throws ArgumentError on an unknown name, and for settings that full fine-tuning has no use for
 */
export function presetSettings(name: MethodName, given: LoraConfigInput): LoraConfigInput | null {
  checkMethodName(name);
  const settings = defined(given);
  const preset = METHODS[name].adapter;
  if (preset !== null) {
    const given = new Set(Object.keys(settings).map(camel)); // a key may be in PEFT's snake case
    const open = Object.entries(preset).filter(([key]) => !given.has(key));
    return { ...Object.fromEntries(open), ...settings };
  }
  if (Object.keys(settings).length > 0) {
    throw new ArgumentError(
      `method full trains every weight and has no adapter; leave out ${Object.keys(settings).join(', ')}`,
    );
  }
  return null;
}

/** The entries that have a value. */
export function defined<T extends object>(values: T): Partial<T> {
  return Object.fromEntries(
    Object.entries(values).filter(([, value]) => value !== undefined),
  ) as Partial<T>;
}

/** Messages of the library as the command line shows them: the names of options become flags. */
import { kebab, type OptionTable, optionCalled } from '../options/option.ts';

/** Matches a word that is no part of a path, a flag, a longer name or a quoted text. */
const word = (pattern: string): string => String.raw`(?<![\w./'"-])${pattern}(?![\w/'"-]|\.\w)`;

/** An option with its value, as a program writes it: `overwrite: true`, `columns: ['label', 'sentence']`. */
const kSetting = new RegExp(
  String.raw`(?<=[\s(])(${word(String.raw`[a-zA-Z]\w*`)}): (true|false|'[^']*'|\[[^\]]*\])`,
  'g',
);
/** A name that consists of several words, which no English text contains by chance. */
const kCamelCase = new RegExp(word(String.raw`[a-z]+[A-Z]\w*`), 'g');
/** A flag behind its name, for readers of either: `maxLength 26 (--max-length)`, `baseFormat gguf (--base-format gguf)`. */
const kTwice = /(--[a-z0-9-]+)( \w+)? \(\1(?:\2)?\)/g;
/** An option that differs from that of an earlier run, under the library's name. */
const kDiffering = /(?<=[(;] ?)[a-zA-Z]\w*(?=: was )/g;
/** A name that consists of one word, which is an option's only as the subject of one of these verbs, and in the advice to leave it out. */
const kSubject =
  /(?<=^|: )[a-z]+(?= (?:must|has no|needs|is for|cannot)\b)|(?<=\bleave )[a-z]+(?= out\b)|(?<=\bleave out (?:\w+, )*)[a-z]+(?=, |$)/g;
/** The beginning of a message about an option; that of a choice, since others are words of English, too (`data: cannot open`). */
const kBeginning = /^[a-z]+(?=: )/;

/**
 * Replaces the names of a table's options by their flags: `maxLength` becomes `--max-length`, and `overwrite: true` becomes
 * `--overwrite`. All other words stay as they are.
 */
export function withFlags(message: string, options: OptionTable): string {
  const flagOr = (name: string): string =>
    Object.hasOwn(options, name) ? `--${kebab(name)}` : name;
  const isChoice = (name: string): boolean =>
    Object.hasOwn(options, name) && options[name]?.choices !== undefined;
  return message
    .replace(kSetting, (text, name: string, value: string) => {
      const option = Object.hasOwn(options, name) ? options[name] : undefined;
      const isSwitch = value === 'true' || value === 'false';
      return option !== undefined && (option.placeholder === null) === isSwitch
        ? setting(name, value)
        : text;
    })
    .replace(kDiffering, (name) => flagOr(optionCalled(name, options) ?? name))
    .replace(kSubject, (name) => flagOr(name))
    .replace(kBeginning, (name) => (isChoice(name) ? flagOr(name) : name))
    .replace(kCamelCase, (name) => flagOr(name))
    .replace(kTwice, '$1$2');
}

/** The flag that sets an option to a value that is written in JavaScript. */
function setting(name: string, value: string): string {
  if (value === 'true') return `--${kebab(name)}`;
  if (value === 'false') return `--no-${kebab(name)}`;
  return `--${kebab(name)} ${value.replace(/[[\]']/g, '').replaceAll(', ', ',')}`;
}

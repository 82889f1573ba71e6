// Checks of shell commands on the pages that are not run: the scripts, files, options, suites and targets
// that they name must exist.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const kSuitesPath = '../../scripts/support/suites.mjs';
const { kSuites } = (await import(kSuitesPath)) as { kSuites: { name: string }[] };
const kRoot = fileURLToPath(new URL('../..', import.meta.url));
const read = (path: string): string => readFileSync(join(kRoot, path), 'utf8');

/** The commands of a block: lines that end in a backslash are continued, comments are left out. */
export function linesOf(block: string): string[] {
  return block
    .replaceAll(/\\\n\s*/g, ' ')
    .split('\n')
    .map((line) => line.replace(/(^|\s)# .*$/, '').trim())
    .filter((line) => line !== '');
}

/** The simple commands of a line, without assignments of variables and keywords of loops. */
export function commandsOf(line: string): string[][] {
  return line
    .replaceAll(/\$\([^)]*\)/g, '$')
    .split(/&&|\|\||[;|]/)
    .map((part) =>
      part
        .trim()
        .replace(/^(?:do |(?:export )?\w+=\S* ?)+/, '')
        .split(/\s+/),
    )
    .filter(([first]) => first !== '' && first !== 'done');
}

/** The arguments of a `balora` command; null for another command. */
export function baloraCommand(words: readonly string[]): string[] | null {
  const own = words[0] === 'npx' ? words.slice(1) : words;
  return own[0] === 'balora' ? own.slice(1) : null;
}

/** The problem with a command of the repository; null where none is found, undefined for an unknown command. */
export function problemOf(words: readonly string[]): string | null | undefined {
  const [program = '', first = '', ...rest] = words;
  const balora = baloraCommand(words);
  if (balora) return baloraProblem(balora);
  if (program === 'npm') return npmProblem(first, rest);
  if (program === 'node') return fileProblem(first) ?? optionProblem(rest, [first]);
  if (program === 'npx' && first === 'vitest') return vitestProblem(rest);
  if (program === 'cmake' || (program === 'npx' && first === 'cmake-js'))
    return cmakeProblem(words);
  const built = /^build\/\w+\/(balora\w*)$/.exec(program)?.[1];
  return built === undefined ? undefined : targetProblem(built);
}

/** The problem with a `balora` command, or null. @param words the command and its arguments, possibly as a synopsis */
export function baloraProblem([command = '', ...words]: readonly string[]): string | null {
  const help = helpOf(command);
  if (help === null) return `balora has no command ${command}`;
  const unknown = optionsIn(words).filter((option) => !help.includes(option));
  return unknown.length === 0 ? null : `balora ${command} has no ${unknown.join(', ')}`;
}

const kHelp = new Map<string, string[] | null>();

/** The options in the help of a command; null where there is no such command. */
function helpOf(command: string): string[] | null {
  if (!kHelp.has(command)) kHelp.set(command, readHelp(command));
  return kHelp.get(command) as string[] | null;
}

function readHelp(command: string): string[] | null {
  const main = join(kRoot, 'dist', 'cli', 'main.js');
  try {
    const text = execFileSync(process.execPath, [main, command, '--help'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return text.includes(`balora ${command}`) ? optionsIn(text.split(/[\s,]+/)) : null;
  } catch {
    return null;
  }
}

const optionsIn = (words: readonly string[]): string[] =>
  words.map((word) => /^\[?(--[a-z][\w-]*)/.exec(word)?.[1] ?? '').filter((word) => word !== '');

/** The files that read a script's options, where the script itself does not. */
const kReaders: Readonly<Record<string, readonly string[]>> = {
  bench: ['bench/harness/command.ts'],
  demo: ['examples/demo/demo.mjs'],
};

function npmProblem(command: string, words: readonly string[]): string | null {
  if (['ci', 'install', 'pack'].includes(command)) return null;
  const name = command === 'run' ? (words[0] ?? '') : command;
  const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
  const script = scripts[name];
  if (script === undefined) return `package.json has no script ${name}`;
  const given = words.slice(words.indexOf('--') + 1 || words.length);
  if (name === 'test') return suiteProblem(given);
  const sources = [...script.matchAll(/\S+\.mjs/g)].map(([path]) => path);
  return optionProblem(given, [...sources, ...(kReaders[name] ?? [])]);
}

function suiteProblem(words: readonly string[]): string | null {
  const known = kSuites.map((suite) => suite.name);
  for (const [i, word] of words.entries()) {
    const asked = words[i - 1] === '--only' ? word.split(',') : [];
    const unknown = asked.filter((name) => !known.includes(name) && !/^[A-Z.]+$/.test(name));
    if (unknown.length > 0) return `npm test knows no ${unknown.join(', ')}`;
  }
  return optionProblem(words, ['scripts/test.mjs']);
}

/** The first option that no source contains, literally or as a key, as a problem; otherwise null. */
function optionProblem(words: readonly string[], sources: readonly string[]): string | null {
  const source = sources.map(read).join('\n');
  const isRead = (option: string): boolean => {
    const name = option.slice(2);
    const key = name.replaceAll(/-(.)/g, (_, letter: string) => letter.toUpperCase());
    return new RegExp(`--${name}\\b|'${name}'|\\b${key}:`).test(source);
  };
  const unknown = optionsIn(words).filter((option) => !isRead(option));
  return unknown.length === 0 ? null : `${sources.join(', ')} read no ${unknown.join(', ')}`;
}

function vitestProblem(words: readonly string[]): string | null {
  const config = read('vitest.config.ts');
  for (const [i, word] of words.entries()) {
    if (words[i - 1] === '--project' && !config.includes(`'${word}'`)) {
      return `vitest.config.ts has no project ${word}`;
    }
    const problem = word.startsWith('test/') ? fileProblem(word) : null;
    if (problem) return problem;
  }
  return null;
}

function cmakeProblem(words: readonly string[]): string | null {
  const lists = read('CMakeLists.txt');
  for (const [i, word] of words.entries()) {
    const variable = /^-(?:D|-CD)(BALORA_\w+)=/.exec(word)?.[1];
    if (variable && !lists.includes(variable)) return `CMakeLists.txt has no ${variable}`;
    if (words[i - 1] === '--target') {
      const problem = targetProblem(word);
      if (problem) return problem;
    }
  }
  return null;
}

function targetProblem(name: string): string | null {
  const target = new RegExp(`add_(?:executable|library)\\(${name}\\b`);
  return target.test(read('CMakeLists.txt')) ? null : `CMakeLists.txt makes no ${name}`;
}

/** The problem with a path: it, or the folder of a file that a reader names (NAME), does not exist; otherwise null. */
export function fileProblem(path: string): string | null {
  const existing = basename(path).includes('NAME') ? dirname(path) : path;
  return existsSync(join(kRoot, existing)) ? null : `${existing} is not there`;
}

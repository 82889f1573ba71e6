// Which compiler a set-up takes, what it says of one that is too old, and which package brings one.
import { describe, expect, it } from 'vitest';

interface Compiler {
  command: string;
  family: string;
  version: string;
  major: number;
}
interface Module {
  parseCompiler(text: string): Omit<Compiler, 'command'> | null;
  chooseCompiler(options: {
    env?: Record<string, string>;
    versionOf: (command: string) => string | null;
  }): { compiler: Compiler | null; problem: string | null };
  aptCompiler(candidates: Record<string, string>): string[] | null;
}
// A script without types.
const path = '../../scripts/support/compiler.mjs';
const { parseCompiler, chooseCompiler, aptCompiler } = (await import(path)) as Module;

const gcc = (version: string, name = 'g++', vendor = `Debian ${version}-5`): string =>
  `${name} (${vendor}) ${version}\nCopyright (C) 2022 Free Software Foundation, Inc.\nThis is free software`;
const clang = (version: string): string =>
  `Debian clang version ${version} (6)\nTarget: x86_64-pc-linux-gnu\nThread model: posix`;

/** A machine with these commands. */
const machine =
  (commands: Record<string, string>) =>
  (command: string): string | null =>
    commands[command] ?? null;

describe('parseCompiler', () => {
  it.each([
    [gcc('12.2.0', 'c++'), { family: 'gcc', version: '12.2.0', major: 12 }],
    [
      gcc('11.4.0', 'g++', 'Ubuntu 11.4.0-1ubuntu1~22.04'),
      { family: 'gcc', version: '11.4.0', major: 11 },
    ],
    [gcc('15', 'g++', 'GCC'), { family: 'gcc', version: '15', major: 15 }],
    [gcc('14.1.1 20240507', 'g++', 'GCC'), { family: 'gcc', version: '14.1.1', major: 14 }],
    [clang('16.0.6'), { family: 'clang', version: '16.0.6', major: 16 }],
    ['Ubuntu clang version 18.1.3 (1ubuntu1)', { family: 'clang', version: '18.1.3', major: 18 }],
    [
      'Apple clang version 15.0.0 (clang-1500.3)',
      { family: 'apple', version: '15.0.0', major: 15 },
    ],
    ['tcc version 0.9.27', null],
    ['', null],
  ])('reads %j', (text, expected) => {
    expect(parseCompiler(text)).toEqual(expected);
  });
});

describe('chooseCompiler', () => {
  it("takes the system's own where it is new enough", () => {
    const versionOf = machine({ 'c++': gcc('12.2.0'), 'g++-14': gcc('14.2.0') });
    expect(chooseCompiler({ env: {}, versionOf }).compiler?.command).toBe('c++');
  });

  it('takes a newer one beside an old one: g++ before clang, the newest first', () => {
    const old = { 'c++': gcc('11.4.0'), 'clang++-20': clang('20.1.3') };
    const withGcc = { ...old, 'g++-12': gcc('12.3.0'), 'g++-13': gcc('13.1.0') };
    const pick = (commands: Record<string, string>) =>
      chooseCompiler({ env: {}, versionOf: machine(commands) }).compiler?.command;
    expect(pick(withGcc)).toBe('g++-13');
    expect(pick(old)).toBe('clang++-20');
    expect(pick({ 'c++': clang('14.0.6'), 'clang++-16': clang('16.0.6') })).toBe('clang++-16');
  });

  it('says what an old one is and what is needed', () => {
    const one = chooseCompiler({ env: {}, versionOf: machine({ 'c++': gcc('10.2.1') }) });
    expect(one.compiler).toBeNull();
    expect(one.problem).toBe(
      'c++ is g++ 10.2.1; balora needs g++ 12 or newer, or clang 16 or newer',
    );
    const clangs = machine({ 'c++': clang('14.0.6'), 'clang++-15': clang('15.0.7') });
    expect(chooseCompiler({ env: {}, versionOf: clangs }).problem).toMatch(
      /^c\+\+ is clang 14\.0\.6; /,
    );
    expect(chooseCompiler({ env: {}, versionOf: () => null }).problem).toMatch(/^there is none; /);
  });

  it('takes what CXX names, with its flags, and no other', () => {
    const versionOf = machine({
      'c++': gcc('12.2.0'),
      'g++-14': gcc('14.2.0'),
      'g++-9': gcc('9.4.0'),
    });
    const named = (CXX: string) => chooseCompiler({ env: { CXX }, versionOf });
    expect(named('g++-14 -m64').compiler).toMatchObject({ command: 'g++-14', major: 14 });
    expect(named('g++-9').problem).toMatch(/^CXX: g\+\+-9 is g\+\+ 9\.4\.0; balora needs/);
    expect(named('nothing').problem).toMatch(/^CXX: nothing does not answer --version/);
  });
});

describe('aptCompiler', () => {
  it.each([
    [
      'Debian 12',
      { 'g++': '4:12.2.0-3', 'g++-12': '12.2.0-14', 'clang-16': '1:16.0.6-15' },
      ['g++'],
    ],
    [
      'Ubuntu 22.04',
      { 'g++': '4:11.2.0-1ubuntu1', 'g++-11': '11.4.0', 'g++-12': '12.3.0' },
      ['g++-12'],
    ],
    [
      'one with clang alone',
      { 'g++': '4:10.2.1-1', 'clang-19': '1:19.1.7' },
      ['clang-19', 'libomp-19-dev'],
    ],
    [
      'Debian 11',
      { 'g++': '4:10.2.1-1', 'clang-13': '1:13.0.1', 'clang-16': '1:16.0.6' },
      ['clang-16', 'libomp-16-dev'],
    ],
    ['Debian 11 without updates', { 'g++': '4:10.2.1-1', 'clang-13': '1:13.0.1' }, null],
    ['a system without lists', {}, null],
  ])('finds the package of %s', (_name, candidates, expected) => {
    expect(aptCompiler(candidates as Record<string, string>)).toEqual(expected);
  });
});

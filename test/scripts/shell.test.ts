// Messages of failures in the scripts: each names the problem and ends in advice.
import { expect, it } from 'vitest';

interface Shell {
  SetupError: ErrorConstructor;
  textOf(error: unknown): string;
  runVisible(command: string, args: string[]): number | null;
  runLogged(name: string, command: string, args: string[]): Promise<void>;
}
// The script has no types.
const path = '../../scripts/support/shell.mjs';
const { SetupError, textOf, runVisible, runLogged } = (await import(path)) as Shell;

it.each([
  ['ENOSPC', /^\/x: the disk is full \(ENOSPC\)\. Free space and run this again\.$/],
  ['EACCES', /^\/x: this user may not write there \(EACCES\)\. Change the owner .* again\.$/],
])('a refusal of the system (%s) has a remedy', (code, message) => {
  expect(textOf(Object.assign(new Error(code), { code, syscall: 'open', path: '/x' }))).toMatch(
    message,
  );
});

it('an error of the scripts themselves keeps its stack', () => {
  expect(textOf(new TypeError('a bug'))).toMatch(/^TypeError: a bug\n {4}at /);
  expect(textOf(new SetupError('a message'))).toBe('a message');
});

it('a command that does not exist is to be installed', async () => {
  const message =
    /^could not run no-such-command: it is not on the PATH\. Install it and run this again; /;
  expect(() => runVisible('no-such-command', [])).toThrow(message);
  await expect(runLogged('test-shell', 'no-such-command', [])).rejects.toThrow(message);
});

it('a command that fails names its log', async () => {
  await expect(runLogged('test-shell', process.execPath, ['-e', 'nonsense('])).rejects.toThrow(
    /failed \(1\)\.\n[\s\S]*SyntaxError[\s\S]*\nThe complete log is .*test-shell\.log; remove the cause/,
  );
});

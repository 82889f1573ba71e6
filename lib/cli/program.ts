/**
 * The command line as a function of arguments and streams: parses, runs one command, turns errors into messages and exit codes.
 * 0 done; 1 failed; 2 used wrongly; 128 + a signal's number: stopped by it.
 */
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { ArgumentError, BaloraError } from '../errors.ts';
import { hasColour, type OutputStream, styler } from './terminal.ts';

/** What commands may touch of the process. */
export interface CliContext {
  readonly stdout: OutputStream;
  readonly stderr: OutputStream;
}

/** Adds one command to the program; an action returns its exit code. */
export type CommandModule = (program: Command, context: CliContext, run: RunAction) => void;
export type RunAction = <A extends unknown[]>(
  action: (...args: A) => Promise<number>,
) => (...args: A) => Promise<void>;

export async function runCli(
  args: readonly string[],
  context: CliContext,
  commands: () => Promise<readonly CommandModule[]>,
): Promise<number> {
  let exitCode = 0;
  const run: RunAction =
    (action) =>
    async (...actionArgs) => {
      exitCode = await action(...actionArgs);
    };
  const program = new Command('balora')
    .description('BA-LoRA fine-tuning of language models')
    .version(packageVersion())
    .showHelpAfterError('(--help shows every option)')
    .exitOverride()
    .configureOutput({
      writeOut: (text) => context.stdout.write(text),
      writeErr: (text) => context.stderr.write(text),
    });
  try {
    for (const addCommand of await commands()) addCommand(program, context, run);
    await program.parseAsync([...args], { from: 'user' });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    context.stderr.write(`${describe(error, context)}\n`);
    return error instanceof ArgumentError ? 2 : 1;
  }
}

/** The library's own errors speak for themselves; anything else is a fault of ours and shows where it happened. */
function describe(error: unknown, { stderr }: CliContext): string {
  const label = styler(hasColour(stderr))('error:', 'red', 'bold');
  if (error instanceof BaloraError) return `${label} ${error.message}`;
  if (error instanceof Error) return `${label} ${error.stack ?? error.message}`;
  return `${label} ${String(error)}`;
}

function packageVersion(): string {
  // lib/cli and dist/cli both lie two folders below package.json.
  const path = new URL('../../package.json', import.meta.url);
  return (JSON.parse(readFileSync(path, 'utf8')) as { version: string }).version;
}

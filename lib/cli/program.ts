/**
 * The command line as a function of arguments and streams: it parses them, runs one command, and converts errors into messages
 * and exit codes.
 * The exit codes are those of exit_codes.ts.
 */
import { Command, CommanderError } from 'commander';
import { BaloraError } from '../errors.ts';
import { reasonOf } from '../io/files.ts';
import { packageVersion } from '../io/package_version.ts';
import type { OptionTable } from '../options/option.ts';
import { oneLine, printableStack } from '../shown.ts';
import { EXIT, exitCodeOf } from './exit_codes.ts';
import { withFlags } from './flag_names.ts';
import { flagsIn } from './option_table.ts';
import { refuseCommand, refuseOthers } from './other_arguments.ts';
import { hasColour, type InputStream, type OutputStream, ShownStream, styler } from './terminal.ts';

/** The output streams that commands write to, and the input that some read. */
export interface CliContext {
  /** Default: that of the process. */
  readonly stdin?: InputStream;
  readonly stdout: OutputStream;
  readonly stderr: OutputStream;
}

/** The streams of a command, which show what would control a terminal, and the arguments with which the program was called. */
export interface CommandContext extends CliContext {
  readonly args: readonly string[];
  /** The output as it is, for the texts of models, and for an editor of lines. */
  readonly answers: OutputStream;
}

/** A function that adds one command to the program. */
export type CommandModule = (program: Command, context: CommandContext, run: RunAction) => void;
/** Makes the action of a command, which returns its exit code. Its errors name the given options by their flags. */
export type RunAction = <A extends unknown[]>(
  options: OptionTable,
  action: (...args: A) => Promise<number>,
) => (...args: A) => Promise<void>;

export async function runCli(
  args: readonly string[],
  streams: CliContext,
  commands: () => Promise<readonly CommandModule[]>,
): Promise<number> {
  const context: CommandContext = {
    ...streams,
    ...{ args, answers: streams.stdout },
    stdout: new ShownStream(streams.stdout),
    stderr: new ShownStream(streams.stderr),
  };
  let exitCode = 0;
  let options: OptionTable = {};
  const run: RunAction =
    (ownOptions, action) =>
    async (...actionArgs) => {
      options = ownOptions;
      refuseOthers(actionArgs.at(-1) as Command, ownOptions, args);
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
    for (const add of await commands()) add(program, context, run);
    for (const command of program.commands) command.allowUnknownOption().allowExcessArguments();
    refuseCommand(args[0], program);
    await program.parseAsync([...args], { from: 'user' });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.success : EXIT.usage;
    context.stderr.write(`${describe(error, context, options)}\n`);
    return exitCodeOf(error);
  }
}

/**
 * The text of an error: the message alone, with flags for names of options, for errors of the library; path and reason for a failure
 * of the system; the stack trace as well for unexpected errors, which are bugs.
 */
function describe(error: unknown, { stderr }: CliContext, options: OptionTable): string {
  const label = styler(hasColour(stderr))('error:', 'red', 'bold');
  if (error instanceof BaloraError)
    return `${label} ${withFlags(error.in(flagsIn(options)), options)}`;
  const reason = reasonOf(error);
  const { path = 'a file or folder' } = (error ?? {}) as NodeJS.ErrnoException;
  if (reason !== undefined) return `${label} ${oneLine(`${path}: ${reason}`)}`;
  return `${label} ${printableStack(error)}`;
}

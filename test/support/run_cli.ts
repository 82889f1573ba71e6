/** Runs the command line inside the test's process, and collects its output as text. */
import { kCommands } from '../../lib/cli/commands.ts';
import { runCli } from '../../lib/cli/program.ts';
import type { InputStream } from '../../lib/cli/terminal.ts';

interface CliResult {
  code: number;
  out: string;
  err: string;
}

/** The input of a command, whether its streams are a terminal, and callbacks with its output so far after each write. */
interface CliOptions {
  readonly isTTY?: boolean;
  readonly stdin?: InputStream;
  readonly onErr?: ((err: string) => void) | undefined;
  readonly onOut?: (out: string) => void;
}

/** Runs a command. @param options stdin and callbacks, or the callback for stderr alone */
export async function balora(
  args: string[],
  options: CliOptions | ((err: string) => void) = {},
): Promise<CliResult> {
  const { stdin, isTTY, onErr, onOut } =
    typeof options === 'function' ? { onErr: options } : options;
  let [out, err] = ['', ''];
  const stdout = {
    isTTY,
    write: (text: string) => {
      out += text;
      onOut?.(out);
    },
  };
  const stderr = {
    isTTY,
    write: (text: string) => {
      err += text;
      onErr?.(err);
    },
  };
  const code = await runCli(
    args,
    { stdout, stderr, ...(stdin && { stdin }) },
    async () => kCommands,
  );
  return { code, out, err };
}

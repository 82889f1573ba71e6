/** Runs the command line inside the test's process, and collects its output as text. */
import { kCommands } from '../../lib/cli/commands.ts';
import { runCli } from '../../lib/cli/program.ts';

interface CliResult {
  code: number;
  out: string;
  err: string;
}

/** Runs a command. @param onErr called after each write with the text of stderr so far */
export async function balora(args: string[], onErr?: (err: string) => void): Promise<CliResult> {
  let [out, err] = ['', ''];
  const stdout = { write: (text: string) => (out += text) };
  const stderr = {
    write: (text: string) => {
      err += text;
      onErr?.(err);
    },
  };
  const code = await runCli(args, { stdout, stderr }, async () => kCommands);
  return { code, out, err };
}

/** Entry point of `npm run bench`: the bench command alone, with the command line's streams, messages and exit codes. */
import { runCli } from '../../lib/cli/program.ts';
import { outliveReader } from '../../lib/cli/terminal.ts';

const { stdout, stderr } = process;
for (const stream of [stdout, stderr]) outliveReader(stream);
// Imported late: a missing binary is then reported like any other error of the command line.
const commands = async () => [(await import('./command.ts')).addBench];
process.exitCode = await runCli(['bench', ...process.argv.slice(2)], { stdout, stderr }, commands);

/** Entry point of `npm run bench`: the bench command alone, with the command line's streams, messages and exit codes. */
import { runCli } from '../../lib/cli/program.ts';
import { ignoreClosedPipe } from '../../lib/cli/terminal.ts';

const { stdout, stderr } = process;
for (const stream of [stdout, stderr]) ignoreClosedPipe(stream);
// Loaded in there: where there is no binary for the machine, that is a message like others.
const commands = async () => [(await import('./command.ts')).addBench];
process.exitCode = await runCli(['bench', ...process.argv.slice(2)], { stdout, stderr }, commands);

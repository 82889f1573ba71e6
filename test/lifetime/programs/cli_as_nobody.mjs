// The command line as another user than root, who may read everything. The library is loaded before, since the repository may be
// closed to others.
import { kCommands } from '../../../dist/cli/commands.js';
import { runCli } from '../../../dist/cli/program.js';

const kNobody = 65534;

process.setegid(kNobody);
process.seteuid(kNobody);
const { stdout, stderr } = process;
process.exitCode = await runCli(process.argv.slice(2), { stdout, stderr }, async () => kCommands);

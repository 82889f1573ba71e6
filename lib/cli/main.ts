#!/usr/bin/env node
/** The `balora` executable. */
import { runCli } from './program.ts';
import { ignoreClosedPipe } from './terminal.ts';

const { stdout, stderr } = process;
for (const stream of [stdout, stderr]) ignoreClosedPipe(stream);
// The commands are imported lazily, so that a missing native binary for this machine becomes an ordinary error message.
const commands = async () => (await import('./commands.ts')).kCommands;
process.exitCode = await runCli(process.argv.slice(2), { stdout, stderr }, commands);

#!/usr/bin/env node
/** The `balora` executable. */
import { runCli } from './program.ts';
import { outliveReader } from './terminal.ts';

const { stdout, stderr } = process;
for (const stream of [stdout, stderr]) outliveReader(stream);
// Loaded in there: where there is no binary for the machine, that is a message like others.
const commands = async () => (await import('./commands.ts')).kCommands;
process.exitCode = await runCli(process.argv.slice(2), { stdout, stderr }, commands);

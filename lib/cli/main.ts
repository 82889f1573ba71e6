#!/usr/bin/env node
/** The `balora` executable. */
import { kCommands } from './commands.ts';
import { runCli } from './program.ts';

const { stdout, stderr } = process;
process.exitCode = await runCli(process.argv.slice(2), { stdout, stderr }, kCommands);

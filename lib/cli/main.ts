#!/usr/bin/env node
/** The `balora` executable. */
import { addInspect } from './inspect_command.ts';
import { runCli } from './program.ts';

process.exitCode = await runCli(
  process.argv.slice(2),
  { stdout: process.stdout, stderr: process.stderr },
  [addInspect],
);

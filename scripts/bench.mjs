// Runs the command of the benchmark (bench/harness/command.ts) with the given options, after the set-up where needed:
// `npm run bench [-- options]`.
import { ensureBench } from './support/bench_build.mjs';
import { setUp } from './support/set_up.mjs';
import { inRoot, main, runVisible, say } from './support/shell.mjs';

await main(async (args) => {
  await setUp();
  await ensureBench();
  say('');
  return runVisible(process.execPath, [inRoot('build', 'harness', 'main.js'), ...args]) ?? 1;
});

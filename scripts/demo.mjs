// Runs the demo with the options as given, after set-up where needed: `npm run demo [-- options]`.
import { existsSync } from 'node:fs';
import { setUp } from './support/set_up.mjs';
import { inRoot, main, runVisible, SetupError, say } from './support/shell.mjs';

await main(async (args) => {
  await setUp();
  const demo = inRoot('examples', 'demo', 'demo.mjs');
  if (!existsSync(demo)) throw new SetupError(`${demo} is missing.`);
  say('');
  return runVisible(process.execPath, [demo, ...args]) ?? 1;
});

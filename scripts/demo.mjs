// `npm run demo [-- options]`: set-up where needed, then the demo with the options as given.
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

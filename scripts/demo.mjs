// Runs the demo (examples/demo/demo.mjs) with the given options, after the set-up where needed: `npm run demo [-- options]`.
import { existsSync } from 'node:fs';
import { setUp } from './support/set_up.mjs';
import { inRoot, main, runVisible, SetupError, say } from './support/shell.mjs';

await main(async (args) => {
  await setUp();
  const demo = inRoot('examples', 'demo', 'demo.mjs');
  if (!existsSync(demo)) {
    throw new SetupError(
      `${demo} is missing: restore it with "git checkout -- examples/demo/demo.mjs".`,
    );
  }
  say('');
  return runVisible(process.execPath, [demo, ...args]) ?? 1;
});

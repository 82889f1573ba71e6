// `npm run bench [-- options]`: set-up where needed, then `balora bench` with the options as given; the JSON goes to
// build/bench/latest.json unless --json says otherwise.
import { mkdirSync } from 'node:fs';
import { setUp } from './support/set_up.mjs';
import { inRoot, main, runVisible, say } from './support/shell.mjs';

await main(async (args) => {
  await setUp();
  say('');
  const folder = inRoot('build', 'bench');
  mkdirSync(folder, { recursive: true });
  const given = args.some((arg) => arg === '--json' || arg.startsWith('--json='));
  const output = given ? [] : ['--json', inRoot('build', 'bench', 'latest.json')];
  return (
    runVisible(process.execPath, [inRoot('dist', 'cli', 'main.js'), 'bench', ...args, ...output]) ??
    1
  );
});

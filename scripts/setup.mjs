// `npm run setup`: everything from a bare clone to a built library with its test tools.
import { setUp } from './support/set_up.mjs';
import { main, say } from './support/shell.mjs';

await main(async () => {
  await setUp(['build', 'test']);
  say('\nReady. `npm run demo` shows it at work, `npm test` checks it.');
});

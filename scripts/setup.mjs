// Sets up a clone, from missing system packages to the built library: `npm run setup [-- --developer] [--build-onednn[=ARCHIVE]]`.
// --developer installs the tools of `npm test` and builds the C++ tests as well; --build-onednn builds oneDNN from source first.
import { ensureOneDnn } from './support/build_onednn.mjs';
import { kDeveloperNeeds } from './support/needs.mjs';
import { setUp } from './support/set_up.mjs';
import { main, SetupError, say, step, yellow } from './support/shell.mjs';
import { ensureNeeds } from './support/system.mjs';

function parse(args) {
  const options = { developer: false, buildOneDnn: false, archive: null };
  for (const arg of args) {
    if (arg === '--developer') options.developer = true;
    else if (arg === '--build-onednn') options.buildOneDnn = true;
    else if (arg.startsWith('--build-onednn=')) {
      Object.assign(options, { buildOneDnn: true, archive: arg.slice('--build-onednn='.length) });
    } else {
      throw new SetupError(
        `usage: npm run setup -- [--developer] [--build-onednn[=ARCHIVE]], got ${arg}`,
      );
    }
  }
  return options;
}

/** Builds oneDNN from source, for this set-up and, as the printed note says, for later ones. */
async function buildOneDnn(archive) {
  await step('0/4', 'oneDNN from source', async () => {
    await ensureNeeds(['make', 'compiler', 'openmp', 'cmake']);
    process.env.BALORA_ONEDNN_ROOT = await ensureOneDnn({ archive });
    return process.env.BALORA_ONEDNN_ROOT;
  });
}

await main(async (args) => {
  const options = parse(args);
  if (options.buildOneDnn) await buildOneDnn(options.archive);
  const developer = { tools: kDeveloperNeeds, targets: () => [] };
  const without = await setUp(options.developer ? developer : {});
  for (const { reason } of without) say(yellow(`left out: ${reason}`));
  if (options.buildOneDnn) {
    const root = process.env.BALORA_ONEDNN_ROOT;
    say(`\nFor later builds with this oneDNN:\n  export BALORA_ONEDNN_ROOT=${root}`);
  }
  say('\nReady. `npm run demo` fine-tunes a small model, `npm test` runs the tests and checks.');
});

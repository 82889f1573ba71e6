// Runs the checks, one after the other, after the set-up where needed: `npm test -- [--quick | --all] [--only NAME,NAME]`. --quick is
// for the time between two changes, --all runs everything that the machine can, as CI=true does, where checks of platforms take turns.
// A failure does not stop the other checks. What was left out is printed with the command that runs it. The last line has the sums over
// all checks: `N passed, N failed, N skipped`.
import { setUp } from './support/set_up.mjs';
import { main, SetupError, say, textOf } from './support/shell.mjs';
import { kSuites, platformsNow, runSuites, targetsFor, toolsFor } from './support/suites.mjs';

/** Arguments of the checks `attack` and `fuzz` (test/README.md). */
const kAttackArguments = ['--seed', '--minutes', '--target', '--first', '--count', '--lanes'];

function parse(args) {
  const run = process.env.CI === 'true' ? 'all' : 'default';
  const options = { run, only: null, attack: [], platforms: platformsNow() };
  for (let i = 0; i < args.length; ++i) {
    if (args[i] === '--quick') options.run = 'quick';
    else if (args[i] === '--all') options.run = 'all';
    else if (args[i] === '--only' && args[i + 1]) options.only = args[++i].split(',');
    else if (kAttackArguments.includes(args[i]) && args[i + 1])
      options.attack.push(args[i], args[++i]);
    else {
      throw new SetupError(
        `usage: npm test -- [--quick | --all] [--only NAME,...] [${kAttackArguments.join(' N] [')} N], got ${args[i]}`,
      );
    }
  }
  const names = kSuites.map((suite) => suite.name);
  const unknown = (options.only ?? []).filter((name) => !names.includes(name));
  if (unknown.length > 0) {
    throw new SetupError(`no check is called ${unknown.join(', ')}; there are ${names.join(', ')}`);
  }
  return options;
}

await main(async (args) => {
  const options = parse(args);
  let total;
  try {
    // The tests have a type check of their own, which need not stop the others.
    const targets = (without) => targetsFor(options, without);
    const without = await setUp({ tools: toolsFor(options), targets, check: false });
    total = await runSuites(options, without);
  } catch (error) {
    // The closing line is printed even when nothing could be built.
    process.stderr.write(`\n${textOf(error)}\n`);
    total = { passed: 0, failed: 1, skipped: 0 };
  }
  say(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
  return total.failed > 0 ? 1 : 0;
});

// The steps of the set-up, which `npm run setup`, `npm run demo`, `npm run bench` and `npm test` share.
import { buildNative, ensureNodePackages, ensureTypeScript } from './build_steps.mjs';
import { withLock } from './lock.mjs';
import { kBuildNeeds } from './needs.mjs';
import { inRoot, step } from './shell.mjs';
import { checkPlatform, ensureNeeds, ensureTools } from './system.mjs';

/**
 * Sets up everything from a bare clone to a built library, one set-up at a time.
 * @param tools the tools of checks to install as well (needs.mjs)
 * @param targets the CMake targets to build where these tools are missing; by default the addon alone
 * @param check false: leave the type check to a suite of its own, which need not stop the others
 * @returns the tools that the machine has to do without: [{ id, reason }]
 */
export async function setUp({ tools = [], targets = () => ['balora'], check = true } = {}) {
  checkPlatform();
  return withLock(inRoot('build', '.setup.lock'), async () => {
    let without = [];
    await step('1/4', 'System packages', async () => {
      const note = await ensureNeeds(kBuildNeeds);
      without = await ensureTools(tools);
      return without.length > 0
        ? `${note}, without ${without.map(({ id }) => id).join(', ')}`
        : note;
    });
    await step('2/4', 'Node packages', ensureNodePackages);
    await step('3/4', 'Native build', () =>
      buildNative({ targets: targets(without.map(({ id }) => id)) }),
    );
    await step('4/4', 'TypeScript build', () => ensureTypeScript({ check }));
    return without;
  });
}

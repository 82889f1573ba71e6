// The set-up itself, shared by `npm run setup`, `npm run demo` and `npm test`.
import { buildNative, ensureNodePackages, ensureTypeScript } from './build_steps.mjs';
import { step } from './shell.mjs';
import { checkPlatform, ensureSystemPackages } from './system.mjs';

/** @param groups 'build' (what running needs) and perhaps 'test' (test and lint tools, C++ test executable) */
export async function setUp(groups) {
  checkPlatform(groups);
  await step('1/4', 'System packages', () => ensureSystemPackages(groups));
  await step('2/4', 'Node packages', ensureNodePackages);
  const testing = groups.includes('test');
  await step('3/4', 'Native build', () => buildNative({ targets: testing ? [] : ['balora'] }));
  // Tests have a type check of their own, which need not stop the others.
  await step('4/4', 'TypeScript build', () => ensureTypeScript({ check: !testing }));
}

// Rewrites every source in the project's format (biome for TypeScript and JSON, clang-format for C++): `npm run format`.

import { nativeFiles } from './support/checks.mjs';
import { kClangFormat } from './support/needs.mjs';
import { inRoot, main, runVisible } from './support/shell.mjs';

await main(() => {
  const biome = inRoot('node_modules', '@biomejs', 'biome', 'bin', 'biome');
  const ts = runVisible(process.execPath, [biome, 'check', '--write']);
  return runVisible(`clang-format-${kClangFormat}`, ['-i', ...nativeFiles()]) || ts;
});

// `npm run format`: rewrites every source in the house format (biome for TypeScript and JSON, clang-format for C++).
import { inRoot, main, runVisible } from './support/shell.mjs';
import { nativeFiles } from './support/suites.mjs';
import { kClangMajor } from './support/system.mjs';

await main(() => {
  const biome = inRoot('node_modules', '@biomejs', 'biome', 'bin', 'biome');
  const ts = runVisible(process.execPath, [biome, 'check', '--write']);
  return runVisible(`clang-format-${kClangMajor}`, ['-i', ...nativeFiles()]) || ts;
});

// Builds the benchmark's harness: bench/harness/*.ts as JavaScript in build/harness.
//
// Its sources import the library's sources (../../lib/...), so that the type check, the editor and the tests see one program. The
// built harness imports the built library (../../dist/...), which bench/cuda imports as "balora", too: one process then loads one
// copy of the addon's TypeScript half, with one engine and one Tensor class. build/harness is as deep as bench/harness, so nothing
// but the folder's name differs. tsc cannot write that: it keeps relative imports as they stand, and between projects it refuses
// those whose outputs lie elsewhere than their sources (TS2878). Hence each file is compiled by itself; `npm test` checks the types
// with everything else.
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { ensureTypeScript } from './build_steps.mjs';
import { inRoot, SetupError } from './shell.mjs';

const kSources = inRoot('bench', 'harness');
const kBuilt = inRoot('build', 'harness');
const kLibraryImport = /((?:\bfrom|\bimport\()\s*'(?:\.\.\/)+)lib\//g;

/** The JavaScript of one source. */
function compiled(ts, name, source, compilerOptions) {
  const { outputText } = ts.transpileModule(source.replace(kLibraryImport, '$1dist/'), {
    compilerOptions,
    fileName: name,
  });
  if (/['"](\.\.\/)+lib\//.test(outputText)) {
    throw new SetupError(
      `bench/harness/${name} imports lib/ in another form than "from '../../lib/...'": use this form`,
    );
  }
  return outputText;
}

/**
 * Builds the library and the harness where their sources have changed. The folder of `npm run pack:cuda` has both built and
 * no sources.
 * @returns 'up to date' or 'done', for the harness
 */
export async function ensureBench() {
  if (!existsSync(kSources)) return 'up to date';
  await ensureTypeScript({ check: false });
  const names = readdirSync(kSources, { recursive: true }).filter((name) => name.endsWith('.ts'));
  const sources = names.sort().map((name) => [name, readFileSync(join(kSources, name), 'utf8')]);
  const config = readFileSync(inRoot('tsconfig.json'), 'utf8');
  const self = readFileSync(new URL(import.meta.url), 'utf8');
  const key = createHash('sha256')
    .update(JSON.stringify([sources, config, self]))
    .digest('hex');
  const stamp = join(kBuilt, '.inputs');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === key) return 'up to date';
  const { default: ts } = await import('typescript');
  const given = JSON.parse(config).compilerOptions;
  // A file compiled by itself does not know that package.json makes it an ES module.
  const forms = { module: 'es2022', moduleResolution: 'bundler' };
  const { options } = ts.convertCompilerOptionsFromJson({ ...given, ...forms }, '.');
  const fresh = `${kBuilt}.new`; // swapped in at the end: a reader never sees half of it
  rmSync(fresh, { recursive: true, force: true });
  for (const [name, source] of sources) {
    const path = join(fresh, name.replace(/\.ts$/, '.js'));
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, compiled(ts, name, source, options));
  }
  writeFileSync(join(fresh, '.inputs'), key);
  rmSync(kBuilt, { recursive: true, force: true });
  renameSync(fresh, kBuilt);
  return 'done';
}

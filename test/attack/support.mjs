// Helpers of the tests that are written in TypeScript, compiled into build/attack/support for programs that run without vitest.
import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { fileURLToPath, pathToFileURL } from 'node:url';

const kSource = fileURLToPath(new URL('../support/', import.meta.url));
const kFolder = fileURLToPath(new URL('../../build/attack/support/', import.meta.url));
const kImport = /(?<=from ')\.\/(\w+)\.ts(?=')/g;

/** Imports test/support/NAME.ts, which must import nothing of the library. */
export async function supportModule(name) {
  await compile(name);
  return import(pathToFileURL(`${kFolder}${name}.mjs`));
}

/** Compiles a helper and those that it imports, where they are newer than what was compiled. */
async function compile(name) {
  const [source, built] = [`${kSource}${name}.ts`, `${kFolder}${name}.mjs`];
  const text = readFileSync(source, 'utf8');
  for (const [, other] of text.matchAll(kImport)) await compile(other);
  if (existsSync(built) && statSync(built).mtimeMs >= statSync(source).mtimeMs) return;
  const { default: ts } = await import('typescript');
  const compilerOptions = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 };
  const { outputText } = ts.transpileModule(text, { compilerOptions });
  mkdirSync(kFolder, { recursive: true });
  writeFileSync(`${built}.${process.pid}`, outputText.replace(kImport, './$1.mjs'));
  renameSync(`${built}.${process.pid}`, built);
}

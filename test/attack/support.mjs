// Helpers of the tests that are written in TypeScript, compiled into build/attack/support for programs that run without vitest.
import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { fileURLToPath, pathToFileURL } from 'node:url';

/** Imports test/support/NAME.ts, which must import nothing of the library. */
export async function supportModule(name) {
  const source = fileURLToPath(new URL(`../support/${name}.ts`, import.meta.url));
  const folder = fileURLToPath(new URL('../../build/attack/support/', import.meta.url));
  const built = `${folder}${name}.mjs`;
  if (!existsSync(built) || statSync(built).mtimeMs < statSync(source).mtimeMs) {
    const { default: ts } = await import('typescript');
    const compilerOptions = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 };
    const { outputText } = ts.transpileModule(readFileSync(source, 'utf8'), { compilerOptions });
    mkdirSync(folder, { recursive: true });
    writeFileSync(`${built}.${process.pid}`, outputText);
    renameSync(`${built}.${process.pid}`, built);
  }
  return import(pathToFileURL(built));
}

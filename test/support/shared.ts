/** Paths of golden values, data and models in ../shared. Where they are missing, their tests are skipped with the reason. */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, it } from 'vitest';

const kRoot = fileURLToPath(new URL('../../../shared/', import.meta.url));

/** The absolute path of a file or folder in ../shared, such as 'golden/losses', whether or not it exists. */
export function sharedPath(path: string): string {
  return kRoot + path;
}

/**
 * A `describe` in whose place one skipped test names what is missing, unless every given shared path exists
 * (default: ../shared itself).
 */
export function describeShared(name: string, body: () => void): void;
export function describeShared(name: string, paths: string[], body: () => void): void;
export function describeShared(
  name: string,
  ...[paths, body]: [() => void] | [string[], () => void]
): void {
  if (!body) {
    describeShared(name, [''], paths as () => void);
    return;
  }
  const missing = (paths as string[]).filter((path) => !existsSync(sharedPath(path)));
  if (missing.length === 0) {
    describe(name, body);
  } else {
    const names = missing.map((path) => `../shared/${path}`).join(', ');
    // The body is left out, since vitest runs it even to skip it, and it may read files that are missing.
    describe.skip(name, () => it(`needs ${names}`, () => {}));
  }
}

/** Paths into the shared golden values, data and models. A machine without them skips the tests, with the reason. */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, it } from 'vitest';

const kRoot = fileURLToPath(new URL('../../../shared/', import.meta.url));

/** `sharedPath('golden/losses')`: the absolute path, whether or not it exists. */
export function sharedPath(path: string): string {
  return kRoot + path;
}

/**
 * A `describe` that is skipped, naming what is missing, unless every given shared path exists (none given: ../shared itself).
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
    // Not the body: vitest runs it even to skip it, and it may read what is not there.
    describe.skip(`${name} (skipped: ${names} not there)`, () =>
      it('needs shared files', () => {}));
  }
}

/** The version of this package. */
import { readFileSync } from 'node:fs';

/** The version in package.json. */
export function packageVersion(): string {
  // The path is relative to this file: lib/io and dist/io both lie two folders below package.json.
  const path = new URL('../../package.json', import.meta.url);
  return (JSON.parse(readFileSync(path, 'utf8')) as { version: string }).version;
}

// The version of Node-API that the addon is built for is the same in three files: 8 has all functions that the addon calls.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const read = (name: string): string =>
  readFileSync(fileURLToPath(new URL(`../../${name}`, import.meta.url)), 'utf8');

it.each([
  ['CMakeLists.txt', /NAPI_VERSION=(\d+)/],
  ['binding.gyp', /NAPI_VERSION=(\d+)/],
  ['package.json', /"napi_versions": \[\s*(\d+)\s*\]/],
])('%s says 8', (name, pattern) => {
  expect(read(name).match(pattern)?.[1]).toBe('8');
});

// The pretended device of test/fake_device, where the native build has made it.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

export const kFakePlugin = fileURLToPath(
  new URL('../../build/release/balora_fake.so', import.meta.url),
);

/** Why a test that needs the pretended device cannot run; null: it can. */
export const kNoFake = existsSync(kFakePlugin) ? null : `${kFakePlugin} is not built`;

/** Sets an environment variable, for this process's native code too; undefined takes it away. */
export function setVariable(name: string, value: string | undefined): void {
  if (value === undefined) delete process.env[name];
  else process.env[name] = value;
}

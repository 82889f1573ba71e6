// The fake device of test/fake_device, where the native build has made its plug-in.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

export const kFakePlugin = fileURLToPath(
  new URL('../../build/release/balora_fake.so', import.meta.url),
);

/** The reason why tests on the fake device cannot run; null where they can. */
export const kNoFake = existsSync(kFakePlugin) ? null : `${kFakePlugin} is not built`;

/** Sets an environment variable also for the native code of this process; undefined removes it. */
export function setVariable(name: string, value: string | undefined): void {
  if (value === undefined) delete process.env[name];
  else process.env[name] = value;
}

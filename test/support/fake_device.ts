// The devices that run on the processor, the fake one of test/fake_device and the emulated one, where a build has made their plug-ins.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

export const kFakePlugin = fileURLToPath(
  new URL('../../build/release/balora_fake.so', import.meta.url),
);

/** The emulated device of test/emulator, where it is built. */
export const kEmulatedPlugin = fileURLToPath(
  new URL('../../build/emulator/balora_cuda.so', import.meta.url),
);

/** The reason why tests on the fake device cannot run; null where they can. */
export const kNoFake = existsSync(kFakePlugin) ? null : `${kFakePlugin} is not built`;

/** Sets an environment variable also for the native code of this process; undefined removes it. */
export function setVariable(name: string, value: string | undefined): void {
  if (value === undefined) delete process.env[name];
  else process.env[name] = value;
}

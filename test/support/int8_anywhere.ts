/**
 * Runs in int8 on any processor. The library refuses them where products in int8 are slow loops, which have the same bits. A test file
 * mocks the module that says so:
 *
 *     vi.mock('../../lib/device.ts', async (load) =>
 *       (await import('../support/int8_anywhere.ts')).withoutSlowInt8(await load()),
 *     );
 */
import type * as Device from '../../lib/device.ts';

/** lib/device.ts, in which no product in int8 counts as slow. */
export function withoutSlowInt8(device: typeof Device): typeof Device {
  return {
    ...device,
    deviceInfo: (name) => {
      const info = device.deviceInfo(name);
      return info.int8 === 'plain' ? { ...info, int8: 'avx_vnni' } : info;
    },
  };
}

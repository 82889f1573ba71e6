import { vi } from 'vitest';
import { kHangLimitMs } from './limits.ts';

/** Waits until a check holds; throws its last error where it never does. */
export const eventually = <T>(check: () => T | Promise<T>): Promise<T> =>
  vi.waitFor(check, { timeout: 0.9 * kHangLimitMs });

/**
 * Devices: where tensors live and ops run. "cpu" is always there; "cuda" (the same as "cuda:0"), "cuda:1" and so on come
 * out of a plug-in that is loaded when one is first asked for (docs/devices.md).
 */
import { ArgumentError } from './errors.ts';
import { native, withSetting } from './native.ts';

/** What is known of a device. */
export interface DeviceInfo {
  /** "cpu", "cuda:0" */
  device: string;
  /** The driver's words; '' for the CPU. */
  description: string;
  /**
   * What the CPU's products run on: 'amx', 'avx512_bf16', 'avx512', 'avx2' or 'plain', the best it has unless the environment's
   * ONEDNN_MAX_CPU_ISA says less; '' for other devices.
   */
  instructions: string;
  /** Free memory as the driver counts it; 0 where nobody counts. */
  freeBytes: number;
  totalBytes: number;
}

/** Where tensors are made that are given no device. */
export function getDefaultDevice(): string {
  return native.currentDevice();
}

/**
 * Makes tensors on `device` from now on, where no other one is named; in this thread only. Returns the default before.
 * @throws UnsupportedError for a device that is not known, or one that cannot be had, with the reason
 */
export function setDefaultDevice(device: string): string {
  return native.setDevice(device);
}

/**
 * Runs `body` with another default device; undefined: with the one that is in force. For synchronous functions only.
 * @throws ArgumentError when the body returns a promise, UnsupportedError as setDefaultDevice does
 */
export function withDevice<T>(device: string | undefined, body: () => T): T {
  if (device === undefined) return body();
  return startOnDevice(device, () => {
    const result = body();
    if (result instanceof Promise) {
      throw new ArgumentError('withDevice: the body must not be async');
    }
    return result;
  });
}

/** withDevice() for async functions too; of one, what runs before its first await: between awaits other code would see it. */
export function startOnDevice<T>(device: string, body: () => T): T {
  return withSetting(native.setDevice, device, body);
}

/**
 * A device's name and memory. Makes the device ready, so it tells whether it can be had.
 * @throws UnsupportedError as setDefaultDevice does
 */
export function deviceInfo(device: string = getDefaultDevice()): DeviceInfo {
  return native.deviceInfo(device) as DeviceInfo;
}

/** Whether the device's memory is the process's own, so that the resident size tells of it; else its driver counts it. */
export function sharesProcessMemory(device: string = getDefaultDevice()): boolean {
  const { description, totalBytes } = deviceInfo(device);
  return description === '' && totalBytes === 0;
}

/** Two names of one device are one name: "cuda" is "cuda:0". */
export function deviceName(device: string): string {
  return device === 'cuda' ? 'cuda:0' : device;
}

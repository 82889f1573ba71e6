/**
 * Devices: where tensors live and ops run. "cpu" is always there; "cuda" (the same as "cuda:0"), "cuda:1" and so on are provided by
 * a plug-in that is loaded when one is first requested (docs/devices.md).
 */
import { ArgumentError } from './errors.ts';
import { native, withSetting } from './native.ts';

/** Name, description and memory of a device. */
export interface DeviceInfo {
  /** Name of the device: "cpu", "cuda:0". */
  device: string;
  /** The driver's description; '' for the CPU. */
  description: string;
  /**
   * Instruction set of the CPU's matrix products: 'amx', 'avx512_bf16', 'avx512', 'avx2' or 'plain', the fastest it has unless the
   * environment's ONEDNN_MAX_CPU_ISA limits it; '' for other devices.
   */
  instructions: string;
  /**
   * Instructions of the CPU's products in int8: 'avx512_vnni', 'avx_vnni' or 'plain' (none: slow loops), within the same
   * limit; '' for other devices.
   * @since 0.2
   */
  int8: string;
  /**
   * Names of the implementations of each op, or part of one, for which the CPU has several: those that run on this processor within the
   * same limit, in the order in which they are asked whether they take an op's operands. The first that does runs, and `opTimes()`
   * names it. {} for other devices.
   * @since 0.3
   */
  implementations: Record<string, string[]>;
  /**
   * Free memory in bytes: as the driver counts it; for the CPU what this process may still use, by the machine and the control groups
   * (containers) that it is in, swap included. 0 where it is not known.
   */
  freeBytes: number;
  /** All memory in bytes, counted in the same way. */
  totalBytes: number;
}

/** The device on which tensors are made when none is named. */
export function getDefaultDevice(): string {
  return native.currentDevice();
}

/**
 * Sets the device on which tensors are made when none is named, in this thread only. Returns the default before.
 * @throws UnsupportedError for a device that is not known or not available, with the reason
 */
export function setDefaultDevice(device: string): string {
  return native.setDevice(device);
}

/**
 * Runs `body` with another default device; undefined keeps the one in force. For synchronous functions only.
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

/**
 * Runs `body` like withDevice(), and accepts async functions, too: only their part before the first await runs on the device,
 * since between awaits other code would see the setting.
 */
export function startOnDevice<T>(device: string, body: () => T): T {
  return withSetting(native.setDevice, device, body);
}

/**
 * A device's name and memory. Makes the device ready, so it also shows whether the device can be used.
 * @throws UnsupportedError as setDefaultDevice does
 */
export function deviceInfo(device: string = getDefaultDevice()): DeviceInfo {
  return native.deviceInfo(device) as DeviceInfo;
}

/** Whether the device uses the memory of the process, as the CPU does; otherwise the device's driver counts its memory. */
export function sharesProcessMemory(device: string = getDefaultDevice()): boolean {
  const { device: name, description, totalBytes } = deviceInfo(device);
  return name === 'cpu' || (description === '' && totalBytes === 0);
}

/** The canonical name of a device: "cuda" is "cuda:0". */
export function deviceName(device: string): string {
  return device === 'cuda' ? 'cuda:0' : device;
}

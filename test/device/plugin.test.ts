// How the plug-in of a device is found and refused. Each reason for a refusal has an error that says what was looked for, where,
// and what was found; the CPU stays usable.
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { deviceInfo, getDefaultDevice } from '../../lib/device.ts';
import { UnsupportedError } from '../../lib/errors.ts';
import { zeros } from '../../lib/ops/index.ts';
import { tensor } from '../../lib/tensor.ts';
import { kFakePlugin, kNoFake, setVariable } from '../support/fake_device.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-plugin-'));
const kBuilt = ['cuda', 'release'].some((place) =>
  existsSync(fileURLToPath(new URL(`../../build/${place}/balora_cuda.so`, import.meta.url))),
);
const original = process.env.BALORA_CUDA_PLUGIN;

afterEach(() => {
  setVariable('BALORA_CUDA_PLUGIN', original);
  setVariable('BALORA_FAKE_DEVICE', undefined);
});
afterAll(() => rmSync(folder, { recursive: true }));

function refusal(plugin: string | undefined, variant?: string): UnsupportedError {
  setVariable('BALORA_CUDA_PLUGIN', plugin);
  setVariable('BALORA_FAKE_DEVICE', variant);
  try {
    zeros([1], { device: 'cuda' });
  } catch (error) {
    expect(error).toBeInstanceOf(UnsupportedError);
    expect((error as UnsupportedError).code).toBe('ERR_UNSUPPORTED');
    return error as UnsupportedError;
  }
  throw new Error('the device was accepted');
}

describe('a plug-in that cannot be loaded', () => {
  // In a clone where the plug-in is built the loader finds it; test/native/kernels/device_plugin_test.cc tests both cases.
  it.skipIf(kBuilt)('is an error that names both places and the variable for another one', () => {
    const { message } = refusal(undefined);
    expect(message).toMatch(
      /^device "cuda": its plug-in \/.*\/balora_cuda\.so is not there \(nor is \/.*\/build\/cuda\/balora_cuda\.so; BALORA_CUDA_PLUGIN is not set\)\. Build it with "npm run build:cuda", or set BALORA_CUDA_PLUGIN to its path$/,
    );
  });

  it('is named where the variable names no file', () => {
    const path = join(folder, 'absent.so');
    expect(refusal(path).message).toContain(`${path} is not there (the path in BALORA_CUDA_PLUGIN`);
    expect(refusal(folder).message).toContain(`${folder} is not a file`);
  });

  it('is refused with the reason of the dynamic loader', () => {
    const path = join(folder, 'text.so');
    writeFileSync(path, 'no library');
    expect(refusal(path).message).toMatch(/text\.so cannot be loaded: .*(ELF|file too short)/);
  });

  it('is refused where it does not export the entry point', () => {
    const library = '/lib/x86_64-linux-gnu/libm.so.6';
    const { message } = refusal(library);
    expect(message).toMatch(
      /libm\.so\.6 .*(exports no function balora_device_table; set BALORA_CUDA_PLUGIN to|is not there)/,
    );
  });
});

describe.skipIf(kNoFake !== null)('a plug-in that does not fit', () => {
  const rebuild = '; build it from the same source as the addon ("npm run build:cuda")';

  it.each([
    ['null', `gave no table from balora_device_table${rebuild}`],
    ['other', 'is for the device "rocm"; set BALORA_CUDA_PLUGIN to the path of one for "cuda"'],
    ['missing row', `has no rope${rebuild}`],
    ['missing function', `has no upload${rebuild}`],
    ['part of a group', `has capture_begin, but no graph_launch${rebuild}`],
  ])('is refused by name: %s', (variant, what) => {
    expect(refusal(kFakePlugin, variant).message).toBe(
      `device "cuda": the plug-in ${kFakePlugin} ${what}`,
    );
  });

  // The tables of the first three end before a page that cannot be read: a loader that read further would end the process.
  it.each([
    ['older', /^has ABI (\d+), this build of balora needs (\d+)/, -1],
    ['newer', /^has ABI (\d+), this build of balora needs (\d+)/, 1],
    ['shorter', /^has a table of (\d+) bytes, this build of balora needs (\d+)/, -8],
    ['longer', /^has a table of (\d+) bytes, this build of balora needs (\d+)/, 8],
    ['fewer codes', /^knows (\d+) unary ops, this build of balora has (\d+)/, -1],
  ])('is refused with both numbers: %s', (variant, numbers, difference) => {
    const { message } = refusal(kFakePlugin, variant);
    const about = `device "cuda": the plug-in ${kFakePlugin} `;
    expect(message.slice(0, about.length)).toBe(about);
    expect(message.endsWith(rebuild)).toBe(true);
    const found = numbers.exec(message.slice(about.length));
    expect(Number(found?.[1]) - Number(found?.[2])).toBe(difference);
  });

  it.each([
    ['no driver', /^cuda:0: no driver: libcuda\.so\.1 was looked for and is not there$/],
    ['no state', /^cuda:0: the device gave no reason$/],
  ])('%s', (variant, message) => {
    expect(refusal(kFakePlugin, variant).message).toMatch(message);
    // The default device is still the CPU, and works.
    expect(getDefaultDevice()).toBe('cpu');
    expect(Array.from(tensor([1, 2]).dataSync() as Float32Array)).toEqual([1, 2]);
  });

  it('is not refused as a whole for a device number that it lacks', () => {
    setVariable('BALORA_CUDA_PLUGIN', kFakePlugin);
    expect(() => zeros([1], { device: 'cuda:7' })).toThrow(
      /^cuda:7: there are 2 devices, number 7 is none$/,
    );
    expect(deviceInfo('cuda:1')).toMatchObject({
      device: 'cuda:1',
      description: 'pretended device 1',
      totalBytes: 2 ** 30,
    });
  });
});

it.each(['tpu', 'cuda:', 'cuda:x', 'cuda:-1', 'CPU', 'cpu:0', ''])(
  'refuses the name "%s"',
  (device) => {
    expect(() => zeros([1], { device })).toThrow(UnsupportedError);
    expect(() => zeros([1], { device })).toThrow(
      `device "${device}" is not known (known: cpu, cuda, cuda:0, cuda:1 and so on)`,
    );
  },
);

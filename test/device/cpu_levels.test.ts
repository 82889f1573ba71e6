// ONEDNN_MAX_CPU_ISA restricts all matrix products to older instructions, and deviceInfo() reports which are in use. The projects
// cpu-* of vitest.config.ts rely on both.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { deviceInfo } from '../../lib/device.ts';
import { cpuLevelsOf, kCpuLevels } from '../support/cpu_levels.ts';

const kAvx512 = 'avx512bw avx512dq avx512vl';
const kAmx = 'amx_tile amx_bf16';
const kLibrary = new URL('../../dist/device.js', import.meta.url).href;

function instructionsOf(env: Record<string, string>): string {
  const source = `import { deviceInfo } from ${JSON.stringify(kLibrary)};
    process.stdout.write(deviceInfo('cpu').instructions);`;
  return spawnSync(process.execPath, ['--input-type=module', '-e', source], {
    ...{ cwd: fileURLToPath(new URL('../..', import.meta.url)), encoding: 'utf8' },
    env: { ...process.env, ONEDNN_MAX_CPU_ISA: 'DEFAULT', ...env },
  }).stdout;
}

it('products run on the best instructions of the processor, or on those that ONEDNN_MAX_CPU_ISA allows', () => {
  const { best, others } = cpuLevelsOf();
  if (best !== null) expect(instructionsOf({})).toBe(best);
  for (const { name, limit } of others) {
    expect(instructionsOf({ ONEDNN_MAX_CPU_ISA: limit })).toBe(name);
  }
  expect(instructionsOf({ ONEDNN_MAX_CPU_ISA: 'SSE41' })).toBe('plain');
  expect(kCpuLevels.map(({ name }) => name)).toContain(deviceInfo('cpu').instructions);
});

it.each([
  ['nothing is known', 'GenuineIntel', '', null, []],
  ['AVX2', 'GenuineIntel', 'avx2 fma', 'avx2', ['plain']],
  ['AVX-512', 'GenuineIntel', `avx2 fma ${kAvx512}`, 'avx512', ['plain', 'avx2']],
  [
    ...(['AVX512-BF16', 'AuthenticAMD', `avx2 fma ${kAvx512} avx512_bf16`] as const),
    ...(['avx512_bf16', ['plain', 'avx2', 'avx512']] as const),
  ],
  [
    ...(['hidden AMX', 'GenuineIntel', `avx2 fma ${kAvx512} avx512_bf16 avx512_fp16`] as const),
    ...(['avx512', ['plain', 'avx2', 'avx512_bf16']] as const),
  ],
  [
    ...(['AMX', 'GenuineIntel', `avx2 fma ${kAvx512} avx512_bf16 avx512_fp16 ${kAmx}`] as const),
    ...(['amx', ['plain', 'avx2', 'avx512', 'avx512_bf16']] as const),
  ],
])('the levels of a processor: %s', (_, vendor, flags, best, names) => {
  const cpuinfo = `vendor_id\t: ${vendor}\nflags\t\t: ${flags && 'sse4_1'} ${flags}\n`;
  const found = cpuLevelsOf(cpuinfo);
  expect(found.best).toBe(best);
  expect(found.others.map(({ name }) => name)).toEqual(names);
});

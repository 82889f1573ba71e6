// ONEDNN_MAX_CPU_ISA restricts all matrix products to older instructions, and deviceInfo() reports which are in use. The projects
// cpu-* of vitest.config.ts rely on both.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { deviceInfo } from '../../lib/device.ts';
import { kCpuLevels, lowerCpuLevels } from '../support/cpu_levels.ts';

const kLibrary = new URL('../../dist/device.js', import.meta.url).href;

function instructionsOf(env: Record<string, string>): string {
  const source = `import { deviceInfo } from ${JSON.stringify(kLibrary)};
    process.stdout.write(deviceInfo('cpu').instructions);`;
  return spawnSync(process.execPath, ['--input-type=module', '-e', source], {
    ...{ cwd: fileURLToPath(new URL('../..', import.meta.url)), encoding: 'utf8' },
    env: { ...process.env, ONEDNN_MAX_CPU_ISA: 'DEFAULT', ...env },
  }).stdout;
}

it('products run on the best instructions of the processor, or on those that ONEDNN_MAX_CPU_ISA allows', {
  timeout: 120_000,
}, () => {
  const lower = lowerCpuLevels();
  const best = kCpuLevels[lower.length]?.name;
  if (lower.length > 0) expect(instructionsOf({})).toBe(best);
  for (const { name, limit } of lower) {
    expect(instructionsOf({ ONEDNN_MAX_CPU_ISA: limit })).toBe(name);
  }
  expect(instructionsOf({ ONEDNN_MAX_CPU_ISA: 'SSE41' })).toBe('plain');
  expect(kCpuLevels.map(({ name }) => name)).toContain(deviceInfo('cpu').instructions);
});

it.each([
  ['nothing is known', '', []],
  ['AVX2', 'flags\t\t: sse4_1 avx2 fma\n', ['plain']],
  ['AVX-512', 'flags\t\t: sse4_1 avx2 fma avx512bw avx512dq avx512vl\n', ['plain', 'avx2']],
  [
    'AMX',
    'flags\t\t: sse4_1 avx2 fma avx512bw avx512dq avx512vl avx512_bf16 amx_tile amx_bf16\n',
    ['plain', 'avx2', 'avx512', 'avx512_bf16'],
  ],
])('the levels below the best: %s', (_, cpuinfo, names) => {
  expect(lowerCpuLevels(cpuinfo).map(({ name }) => name)).toEqual(names);
});

import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { defineConfig, type TestProjectInlineConfiguration } from 'vitest/config';
import { cpuLevelsOf } from './test/support/cpu_levels.ts';
import { kHangLimitMs } from './test/support/limits.ts';

// Tests that measure time or memory: one file at a time, after all the others.
const kAlone = ['test/lifetime/{base_offload,long_run,memory_budget,worker_endings}.test.ts'];
// Tests that start processes.
const kProcesses = ['test/{examples,lifetime,package}/**/*.test.ts'];

// Files that take half a minute or more and repeat what shorter ones test: on real models, at random moments, on what is packed. Only
// `npm test -- --all` runs them.
const kLong = [
  'test/golden/{gguf_lora,scoring,smollm2_adapters,smollm2_nf4,smollm2_talk,smollm2_train}.test.ts',
  'test/lifetime/{endings,interrupts,resume}.test.ts',
  'test/{attack,studies}/**/*.test.ts',
  'test/{bench/harness/command,examples/demo,export/llama_cpp,package/tarball}.test.ts',
];

// By default OpenMP's threads wait for their next work by spinning, which takes the processor from the other worker's threads:
// two workers with a real model then need half as much processor time again. How threads wait has no effect on results.
const kTwoWorkers = { maxWorkers: 2, env: { OMP_WAIT_POLICY: 'passive' } };

// Tests that also run on the CUDA device: the plug-in that BALORA_CUDA_PLUGIN names, else the emulated one where it is built.
const kOnDevices = [
  'test/{ops,losses,optim}/**/*.test.ts',
  'test/{autograd,gradients,tensor}.test.ts',
  'test/device/{bench_cuda,generation,graph,layer_keep,quantized_graphs,train_graphs,training,weights}.test.ts',
  'test/models/base_format.test.ts',
];
const kEmulated = fileURLToPath(new URL('build/emulator/balora_cuda.so', import.meta.url));

function cudaProject(): TestProjectInlineConfiguration[] {
  const named = process.env.BALORA_CUDA_PLUGIN;
  const plugin = named ?? kEmulated;
  if (!existsSync(plugin)) return [];
  return [
    {
      extends: true,
      test: {
        name: named === undefined ? 'cuda-emulated' : 'cuda',
        include: kOnDevices,
        setupFiles: ['test/support/device_setup.ts'],
        ...kTwoWorkers,
        env: {
          ...kTwoWorkers.env,
          BALORA_TEST_DEVICE: 'cuda',
          BALORA_CUDA_PLUGIN: plugin,
          // Each tensor is then an allocation of its own, and the emulated device finds every access beyond its end.
          ...(named === undefined ? { BALORA_EXACT_BLOCKS: '1' } : {}),
        },
        sequence: { groupOrder: 3 },
      },
    },
  ];
}

// Tests that also run on each other instruction set of the processor for which matrix products have kernels: gradients, and products of views.
const kOnPlainCpu = [
  'test/gradients.test.ts',
  'test/ops/{linear_groups,operand_views,relative_attention,views}.test.ts',
];
// Where there is AVX2 also losses, decoding, products in int8, and both real models against the reference's numbers, in f32 and bf16.
const kOnCpuLevels = [
  ...kOnPlainCpu,
  'test/losses/{divergence,golden}.test.ts',
  'test/golden/{first_step,int8,minilm,smollm2,smollm2_adapters,smollm2_train}.test.ts',
  'test/generate/cached_session.test.ts',
];

function cpuProjects(): TestProjectInlineConfiguration[] {
  return cpuLevelsOf().others.map(({ name, limit }) => ({
    extends: true,
    test: {
      name: `cpu-${name.replace('_', '-')}`,
      include: name === 'plain' ? kOnPlainCpu : kOnCpuLevels,
      setupFiles: ['test/support/cpu_level_setup.ts'],
      ...kTwoWorkers,
      env: { ...kTwoWorkers.env, BALORA_TEST_CPU_LEVEL: name, ONEDNN_MAX_CPU_ISA: limit },
      sequence: { groupOrder: 4 },
    },
  }));
}

// Processes instead of threads: a crash of the addon then ends only one test file, and every file has a fresh engine.
export default defineConfig({
  test: {
    pool: 'forks',
    globalSetup: ['test/support/global_setup.mjs'],
    setupFiles: ['test/support/count_assertions.ts', 'test/support/files_closed.ts'],
    testTimeout: kHangLimitMs,
    hookTimeout: kHangLimitMs,
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: [...kProcesses, ...kLong],
          ...kTwoWorkers,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: 'long',
          include: kLong,
          ...kTwoWorkers,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: 'processes',
          include: kProcesses,
          exclude: [...kAlone, ...kLong],
          ...kTwoWorkers,
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: { name: 'alone', include: kAlone, maxWorkers: 1, sequence: { groupOrder: 2 } },
      },
      ...cudaProject(),
      ...cpuProjects(),
    ],
  },
});

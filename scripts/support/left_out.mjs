// Tests and checks that a run of `npm test` leaves out: test/left_out.json lists all of them by name, with the condition, the reason
// and what runs it. A run with CI=true fails if it leaves out anything else, or runs what is listed as left out.
import { existsSync, readFileSync } from 'node:fs';
import { chooseCompiler } from './compiler.mjs';
import { nvccMissing } from './cuda_build.mjs';
import { rootProblem } from './debian_root.mjs';
import { fuzzingCompiler } from './fuzz.mjs';
import { mayMount } from './mount.mjs';
import { has, inRoot } from './shell.mjs';

/** Whether the processor is without a feature, by its flag in /proc/cpuinfo. */
export function processorLacks(flag) {
  try {
    return !new RegExp(`^flags\\s*:.* ${flag}( |$)`, 'm').test(
      readFileSync('/proc/cpuinfo', 'utf8'),
    );
  } catch {
    return true;
  }
}

/** Whether this is a processor with AMX that a virtual machine hides: its products run on AVX-512, not on AVX512-BF16 (native/platform/cpu.cc). */
function hidesAmx() {
  if (processorLacks('avx512_fp16') || !processorLacks('amx_bf16')) return false;
  return /^vendor_id\s*:\s*GenuineIntel$/m.test(readFileSync('/proc/cpuinfo', 'utf8'));
}

/** Whether this processor lacks a level of instructions that a project of vitest holds products to, or it is its best, by project. */
export const kLeftOutLevels = {
  'cpu-plain': () => processorLacks('avx2'),
  'cpu-avx2': () => processorLacks('avx512bw'),
  'cpu-avx512': () => processorLacks('avx512_bf16') || hidesAmx(),
  'cpu-avx512-bf16': () => processorLacks('amx_bf16') && !hidesAmx(),
};

/** Whether this machine has an NVIDIA GPU with a driver. */
export const hasGpu = () => has('nvidia-smi', ['-L']);

/** Whether the compiler of the native builds compares types and signatures of a name over all sources (the suite `odr`). */
export const comparesDefinitions = () => chooseCompiler().compiler?.family === 'gcc';

const kShared = inRoot('..', 'shared');

/**
 * The conditions that test/left_out.json names: whether each holds now, or null where only the test itself finds out. One that takes
 * arguments is asked for each name of its groups.
 */
const kConditions = {
  'not its turn': (name, turn) => turn !== null && !turn.includes(name),
  'where no root of Debian can be made': () => rootProblem() !== null,
  always: () => true,
  'beside ../shared, without BALORA_SLOW=1': () =>
    existsSync(kShared) && process.env.BALORA_SLOW !== '1',
  'without ../shared': () => !existsSync(kShared),
  'without nvcc': () => nvccMissing() !== null,
  'after npm run build:cuda': () => existsSync(inRoot('build', 'cuda', 'balora_cuda.so')),
  'without a GPU': () => !hasGpu(),
  'without AVX2': () => processorLacks('avx2'),
  'without AVX-512': () => processorLacks('avx512bw'),
  'where products run on AVX-512 at best': kLeftOutLevels['cpu-avx512'],
  'where products run on AVX512-BF16 at best': kLeftOutLevels['cpu-avx512-bf16'],
  'where products run on AVX2 at best': () => processorLacks('avx512bw') && !processorLacks('avx2'),
  'where products in int8 are slow loops': () => null,
  'where the processor lacks what an implementation needs': () => null,
  'on a Node that cannot require an ES module': () => process.features.require_module !== true,
  'without a C compiler': () => !['cc', 'gcc', 'clang'].some((name) => has(name, ['--version'])),
  'where this process may not mount file systems or make control groups': () => null,
  'where a user cannot make namespaces': () =>
    !has('unshare', ['--user', '--map-root-user', '--mount', '--net', '--pid', '--fork', 'true']),
  'without python3': () => !has('python3'),
  'without Go': () => !has('go', ['version']),
  'where node-llama-cpp has no binary': () => null,
  'where the chosen compiler is not GCC': () => !comparesDefinitions(),
  'without clang with libFuzzer': () => fuzzingCompiler() === null,
  'without the right to mount': () => !mayMount(),
  'with a registry without signatures': () => null,
  'on a busy machine': () => null,
};

/**
 * The groups of test/left_out.json: [{ when, why, run, names }], each with `holds`.
 * @param text the file's text
 * @param turn the checks of platforms whose turn it is; null: all of them
 */
export function leftOutList({
  text = readFileSync(inRoot('test', 'left_out.json'), 'utf8'),
  turn = null,
} = {}) {
  return JSON.parse(text).flatMap((group) => {
    const condition = kConditions[group.when];
    if (!condition) {
      throw new Error(
        `test/left_out.json: scripts/support/left_out.mjs knows no condition "${group.when}"`,
      );
    }
    return condition.length > 0
      ? group.names.map((name) => ({ ...group, names: [name], holds: condition(name, turn) }))
      : { ...group, holds: condition() };
  });
}

/**
 * Compares what a run left out with the list. A name in two groups may be left out for either reason.
 * @param names what was left out, each name once for each time
 * @param groups from {@link leftOutList}
 * @param ran whether the run included the suite that a name belongs to
 * @returns a line for each difference
 */
export function differences(names, groups, ran) {
  const countsOf = (some) => {
    const counts = new Map();
    for (const name of some) counts.set(name, (counts.get(name) ?? 0) + 1);
    return counts;
  };
  const namesOf = (some) => {
    const most = new Map();
    for (const [name, count] of some.flatMap(({ names: own }) => [...countsOf(own)])) {
      most.set(name, Math.max(count, most.get(name) ?? 0));
    }
    return [...most].flatMap(([name, count]) => Array(count).fill(name));
  };
  const listed = namesOf(groups.filter(({ holds }) => holds !== false));
  const wanted = namesOf(groups.filter(({ holds }) => holds === true));
  const beyond = (some, others) => {
    const counts = countsOf(others);
    return some.filter((name) => {
      const left = counts.get(name) ?? 0;
      counts.set(name, left - 1);
      return left <= 0;
    });
  };
  return [
    ...beyond(names, listed).map(
      (name) => `left out, but not listed for this machine in test/left_out.json: ${name}`,
    ),
    ...beyond(wanted.filter(ran), names).map(
      (name) => `listed in test/left_out.json, but not left out: ${name}`,
    ),
  ];
}

/** The rows of a run by name: the workloads of the training rows, and all other measurements. */
import type { InitLoraWeights } from '../../lib/adapters/config.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { kLargeMicroNames, kMicroNames } from './kernels/row.ts';
import { type DecodeInput, kDecodeRows } from './rows/decode.ts';
import { kMethodRows } from './rows/method.ts';
import type { BenchMethod, Workload } from './types.ts';

/** A row that can be chosen. `byName`: only by its own name, since the row needs a GPU, or a model of a certain form. */
export type Plan = { readonly byName?: true } & (
  | { readonly kind: 'step'; readonly name: string; readonly workload: Workload }
  | { readonly kind: 'micro'; readonly name: string }
  | {
      readonly kind: 'pissa';
      readonly name: string;
      readonly init: InitLoraWeights;
      readonly rank: number;
    }
  | { readonly kind: 'overhead'; readonly name: string; readonly rank: number }
  | { readonly kind: 'decode'; readonly name: DecodeInput['name'] }
  | { readonly kind: 'start'; readonly name: string }
  | { readonly kind: 'method'; readonly name: string }
  | { readonly kind: 'ratio'; readonly name: string; readonly needs: readonly string[] }
);

const kMethods: readonly BenchMethod[] = ['balora', 'lora'];

const kPlain = { rank: 16, batch: 4, length: 512, accumulation: 1, data: 'random' } as const;

/** Workloads of both methods. */
const kShared: readonly Omit<Workload, 'method'>[] = [
  { ...kPlain, label: '4x512' },
  { ...kPlain, label: 'gsm8k', data: 'gsm8k' },
  { ...kPlain, label: '1x2048', batch: 1, length: 2048 },
  { ...kPlain, label: 'r128', rank: 128, batch: 1, accumulation: 8 },
  { ...kPlain, label: '4x512-r128', rank: 128 },
  { ...kPlain, label: '4x512-int8', feature: 'int8' },
  { ...kPlain, label: '4x512-dx', feature: 'int8Dx' },
];

/** Workloads of BA-LoRA alone. */
const kOwn: readonly Omit<Workload, 'method'>[] = [
  { ...kPlain, label: '8x256', batch: 8, length: 256 },
  { ...kPlain, label: '4x512-cache-teacher', feature: 'cacheTeacher' },
  { ...kPlain, label: '4x512-cache-teacher-int8', feature: 'cacheTeacherInt8' },
  { ...kPlain, label: '4x512-memory-min', feature: 'minimalMemory' },
  { ...kPlain, label: '4x512-1-thread', threads: 1 },
  { ...kPlain, label: '4x512-teacher-dx', feature: 'int8TeacherDx' },
];

/** The workload of an encoder, in the row's own dtype here and in f32 in PyTorch. */
const kEncoder: Workload = {
  ...{ label: 'sst2', method: 'lora', rank: 8, batch: 16, length: 128 },
  ...{ accumulation: 1, data: 'sst2' },
};

/** The workload without graphs, to show what they gain on a GPU. */
const kWithoutGraphs = { ...kPlain, label: '4x512-no-graphs', feature: 'noGraphs' } as const;

/** Workloads of a base in blocks, and what they are compared with. `gguf` needs a model, a GGUF file. */
const kBlocks: readonly Workload[] = [
  { ...kPlain, label: '1x512', batch: 1, method: 'balora' },
  { ...kPlain, label: '4x512-nf4', method: 'balora', baseFormat: 'nf4' },
  { ...kPlain, label: '1x512-nf4', batch: 1, method: 'balora', baseFormat: 'nf4' },
  { ...kPlain, label: '4x512-gguf', method: 'balora', baseFormat: 'gguf' },
  { ...kPlain, label: '1x512-gguf', batch: 1, method: 'balora', baseFormat: 'gguf' },
  ...(['balora', 'lora'] as const).map(
    (method): Workload => ({
      ...{ ...kPlain, label: '4x512-gguf-memory-min', method, baseFormat: 'gguf' },
      feature: 'minimalMemory',
    }),
  ),
];

function stepPlan(workload: Workload): Plan {
  return { kind: 'step', name: `${workload.method}-${workload.label}`, workload };
}

const kSteps: readonly Plan[] = [
  ...kShared.flatMap((workload) => kMethods.map((method) => stepPlan({ ...workload, method }))),
  ...kOwn.map((workload) => stepPlan({ ...workload, method: 'balora' })),
  { kind: 'step', name: 'minilm-sst2', workload: kEncoder },
  ...kMethods.map((method): Plan => ({ ...stepPlan({ ...kWithoutGraphs, method }), byName: true })),
  ...kBlocks.map((workload): Plan => ({ ...stepPlan(workload), byName: true })),
];

/** The two rows that each ratio is computed from; see ratios.ts. */
export const kRatioNeeds = {
  'balora-over-lora': ['balora-4x512', 'lora-4x512'],
  'cache-teacher-over-lora': ['balora-4x512-cache-teacher', 'lora-4x512'],
  'memory-min-time': ['balora-4x512-memory-min', 'balora-4x512'],
  'memory-min-memory': ['balora-4x512-memory-min', 'balora-4x512'],
  'long-over-short-time': ['balora-1x2048', 'balora-8x256'],
  'long-over-short-memory': ['balora-1x2048', 'balora-8x256'],
  'nf4-time-4x512': ['balora-4x512-nf4', 'balora-4x512'],
  'nf4-time-1x512': ['balora-1x512-nf4', 'balora-1x512'],
  'gguf-time-4x512': ['balora-4x512-gguf', 'balora-4x512'],
  'gguf-time-1x512': ['balora-1x512-gguf', 'balora-1x512'],
  'gguf-memory-4x512': ['balora-4x512-gguf', 'balora-4x512'],
  'int8-over-bf16': ['balora-4x512-teacher-dx', 'balora-4x512'],
  'threads-1-2': ['balora-4x512', 'balora-4x512-1-thread'],
} as const satisfies Record<string, readonly [string, string]>;

/** Ratios whose rows need a model of a certain form. */
const kRatiosByName: readonly string[] = Object.entries(kRatioNeeds)
  .filter(([, needs]) => needs.some((need) => kBlocks.some((one) => need.endsWith(one.label))))
  .map(([name]) => name);

export type RatioName = keyof typeof kRatioNeeds;

const kDecodeNames = Object.keys(kDecodeRows) as DecodeInput['name'][];

export const kPlans: readonly Plan[] = [
  ...kSteps,
  ...Object.entries(kRatioNeeds).map(
    ([name, needs]): Plan => ({
      ...{ kind: 'ratio', name, needs },
      ...(kRatiosByName.includes(name) && { byName: true }),
    }),
  ),
  { kind: 'pissa', name: 'pissa-converged', init: 'pissa', rank: 16 },
  { kind: 'pissa', name: 'pissa-niter-16', init: 'pissa_niter_16', rank: 16 },
  { kind: 'pissa', name: 'pissa-converged-r128', init: 'pissa', rank: 128, byName: true },
  { kind: 'pissa', name: 'pissa-niter-16-r128', init: 'pissa_niter_16', rank: 128, byName: true },
  { kind: 'overhead', name: 'lora-overhead-r128', rank: 128, byName: true },
  ...kDecodeNames.map((name): Plan => ({ kind: 'decode', name })),
  { kind: 'start', name: 'start-lora' },
  ...Object.keys(kMethodRows).map((name): Plan => ({ kind: 'method', name })),
  ...kMicroNames.map((name): Plan => ({ kind: 'micro', name })),
  ...kLargeMicroNames.map((name): Plan => ({ kind: 'micro', name, byName: true })),
];

/** Groups of rows by name. `growth` and `methods` are no part of `all`, because they take long. */
const kGroups: Readonly<Record<string, readonly Plan['kind'][]>> = {
  all: ['step', 'ratio', 'pissa', 'decode', 'start', 'micro'],
  steps: ['step', 'ratio'],
  micro: ['micro'],
  pissa: ['pissa'],
  decode: ['decode'],
  start: ['start'],
  methods: ['method'],
};

export const kGroupNames = [...Object.keys(kGroups), 'growth', 'growth-bases'];

/**
 * The rows that `--only` chooses by names, groups, or prefixes with a star, together with the rows that chosen ratios need.
 * @throws ArgumentError for an unknown name
 */
export function choosePlans(only: readonly string[]): Plan[] {
  const chosen = new Set<string>();
  for (const name of only) {
    const found = kPlans.filter((plan) => matches(plan, name));
    if (found.length === 0) {
      const known = kPlans.filter(({ kind }) => kind !== 'micro').map((plan) => plan.name);
      throw new ArgumentError(
        `no benchmark row is called "${name}"; there are the groups ${kGroupNames.join(', ')} and the rows ` +
          `${known.join(', ')}, ${[...kMicroNames, ...kLargeMicroNames].join(', ')}`,
      );
    }
    for (const plan of found) {
      chosen.add(plan.name);
      if (plan.kind === 'ratio') for (const need of plan.needs) chosen.add(need);
    }
  }
  return kPlans.filter(({ name }) => chosen.has(name));
}

function matches(plan: Plan, name: string): boolean {
  if (Object.hasOwn(kGroups, name)) {
    return plan.byName !== true && (kGroups[name] ?? []).includes(plan.kind);
  }
  return name.endsWith('*') ? plan.name.startsWith(name.slice(0, -1)) : plan.name === name;
}

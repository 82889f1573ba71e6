/**
 * What a benchmark run reports: the machine, one row a measurement, warnings. This is the JSON that `npm run bench` writes;
 * times are in seconds, sizes in bytes, rates in tokens, floating point operations or bytes a second.
 */
import type { Feature } from './features.ts';

/** A sample of repetitions. */
export interface Spread {
  readonly median: number;
  readonly low: number;
  readonly high: number;
  readonly samples: number;
}

export interface Machine {
  readonly cpu: string;
  /** Cores this process may use. */
  readonly cores: number;
  /** Threads of the kernels. */
  readonly threads: number;
  /** Instruction sets that kernels may choose between, in the kernel's own names (avx2, avx512_bf16, amx_bf16). */
  readonly features: readonly string[];
  readonly memoryBytes: number;
  readonly system: string;
  /** The device that was measured, in its driver's words; left out: the CPU. */
  readonly device?: string;
  readonly node: string;
  readonly balora: string;
  /** Best packed product found, floating point operations a second. */
  readonly peakF32: number;
  readonly peakBf16: number;
  /** Bytes read and written a second by a sum of two arrays that no cache holds. */
  readonly memoryBandwidth: number;
}

/** How busy the machine was with other things. */
export interface Disturbance {
  /** Processor time of other processes and of the hypervisor, as a share of all cores' time. */
  readonly others: number;
  readonly stolen: number;
}

export type BenchDType = 'bf16' | 'f32';
export type BenchMethod = 'balora' | 'lora';

/** One training workload. */
export interface Workload {
  /** Row name without the method: `4x512`. */
  readonly label: string;
  readonly method: BenchMethod;
  readonly rank: number;
  /** Sequences of a micro-batch; their length; micro-batches of a step. */
  readonly batch: number;
  readonly length: number;
  readonly accumulation: number;
  /** `sst2`: labelled sentences for an encoder, of their own lengths. */
  readonly data: 'random' | 'gsm8k' | 'sst2';
  /** Kernel threads; left out: all. */
  readonly threads?: number;
  /** Vocabulary other than the shape's own. */
  readonly vocabulary?: number;
  /** An option of the trainer that is switched on for this row. */
  readonly feature?: Feature;
}

/** Seconds of one step by part, medians of their own. `other`: the step's time that no op accounts for. */
export interface StepSplit {
  readonly forward: number;
  readonly teacher: number;
  readonly losses: number;
  readonly backward: number;
  readonly optimizer: number;
  readonly data: number;
  readonly other: number;
}

/** The same work done by PyTorch, in turns with balora. */
export interface TorchPairs {
  readonly version: string;
  readonly tokensPerSecond: Spread;
  readonly peakBytes: number;
  /** balora's tokens/s over torch's, pair by pair. */
  readonly speedRatio: Spread;
  /** torch's peak memory over balora's, pair by pair. */
  readonly memoryRatio: Spread;
}

/** What all rows have. */
export interface Measured {
  /** `balora-4x512` */
  readonly name: string;
  readonly dtype: BenchDType;
  /** While the row was measured; older reports have it of training rows alone. */
  readonly disturbance?: Disturbance;
}

export interface StepRow extends Measured {
  readonly kind: 'step';
  readonly shape: string;
  readonly workload: Workload;
  /** Real tokens and supervised tokens of a step (means, where steps differ). */
  readonly tokens: number;
  readonly supervisedTokens: number;
  readonly tokensPerSecond: number;
  /** Tokens a second, step by step. */
  readonly rate: Spread;
  /** Of a step. */
  readonly seconds: Spread;
  readonly split: StepSplit;
  /** VmHWM of the process that ran this row alone; of a GPU, the largest sum of device memory in use. */
  readonly peakBytes: number;
  /** Useful operations a token, counted from the shapes. */
  readonly flopsPerToken: number;
  /** Seconds of the step's products run alone, and their share of the step. */
  readonly rooflineSeconds: number;
  readonly rooflineShare: number;
  /** Seconds of a step of nothing but these products and its attention's operations at `gemmPeak`; 0: not measured. */
  readonly ceilingSeconds?: number;
  /** Best packed product in this process at this row's dtype and threads. */
  readonly gemmPeak: number;
  /** What the reader should know: synthetic lengths, random weights. */
  readonly notes: readonly string[];
  readonly torch?: TorchPairs;
}

export interface MicroRow extends Measured {
  readonly kind: 'micro';
  /** The operands, in words: `x 2048x576`. */
  readonly shapes: string;
  readonly seconds: Spread;
  /** Operations or bytes of one call, and the ceiling that they are held against. */
  readonly work: number;
  readonly unit: 'flop' | 'byte';
  readonly rate: number;
  readonly ceilingShare: number;
  /** Memory that one call needs beside its operands, results included. */
  readonly extraBytes?: number;
}

export interface PissaRow extends Measured {
  readonly kind: 'pissa';
  readonly seconds: Spread;
  readonly modules: number;
  readonly rank: number;
  /** Share of the weights' squared norm that the rank-r parts hold, over all modules. */
  readonly capturedEnergy: number;
  readonly peakBytes: number;
  readonly notes: readonly string[];
  /** The same weights by PyTorch, in turns. */
  readonly torch?: { version: string; seconds: Spread; capturedEnergy: number };
}

export interface StartRow extends Measured {
  readonly kind: 'start';
  /** From the start of the process to the beginning of the first step. */
  readonly seconds: Spread;
  readonly notes: readonly string[];
}

/** A figure made from other rows, or of two measurements. */
export interface RatioRow extends Measured {
  readonly kind: 'ratio';
  readonly value: number;
  /** The formula in words. */
  readonly meaning: string;
}

/** A row that this version or these arguments cannot measure. */
export interface UnavailableRow extends Measured {
  readonly kind: 'unavailable';
  readonly reason: string;
}

export type Row = StepRow | MicroRow | PissaRow | StartRow | RatioRow | UnavailableRow;

/** y = a x^b, or y = a + b x. */
export interface Fit {
  readonly form: 'power' | 'linear';
  readonly a: number;
  readonly b: number;
  /** Share of the variance of y that the fit explains. */
  readonly r2: number;
  readonly formula: string;
}

/** One quantity against one size, everything else kept. */
export interface GrowthSeries {
  readonly shape: string;
  readonly dtype: BenchDType;
  readonly axis: 'length' | 'batch' | 'rank' | 'vocabulary';
  /** What is kept, in words. */
  readonly fixed: string;
  readonly points: readonly {
    readonly x: number;
    readonly seconds: number;
    readonly peakBytes: number;
  }[];
  /** In seconds, and in GiB. */
  readonly time: Fit;
  readonly memory: Fit;
}

export interface Report {
  readonly format: 1;
  readonly date: string;
  /** Of the checkout, with a plus where files had been changed; null outside of one. Older reports have none. */
  readonly commit?: string | null;
  /** Name of the file or folder that was measured; absent for random weights. */
  readonly model?: string;
  readonly machine: Machine;
  readonly warnings: readonly string[];
  readonly rows: readonly Row[];
  readonly growth: readonly GrowthSeries[];
}

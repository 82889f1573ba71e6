/**
 * Types of a benchmark report: the machine, one row per measurement, warnings. `npm run bench` writes it as JSON; times are in
 * seconds, sizes in bytes, rates in tokens, floating point operations or bytes per second.
 */
import type { Feature } from './features.ts';

/** Median and range of repeated measurements. */
export interface Spread {
  readonly median: number;
  readonly low: number;
  readonly high: number;
  readonly samples: number;
}

export interface Machine {
  readonly cpu: string;
  /** Number of cores that this process may use. */
  readonly cores: number;
  /** Number of kernel threads. */
  readonly threads: number;
  /** Instruction sets that kernels may choose from, by the names in /proc/cpuinfo (avx2, avx512_bf16, amx_bf16). */
  readonly features: readonly string[];
  readonly memoryBytes: number;
  readonly system: string;
  /** Name of the measured device by its driver; absent for the CPU. */
  readonly device?: string;
  readonly node: string;
  readonly balora: string;
  /** Rate of the fastest packed product in f32, in floating point operations per second. */
  readonly peakF32: number;
  readonly peakBf16: number;
  /** Bytes per second that a sum of two arrays larger than any cache reads and writes. */
  readonly memoryBandwidth: number;
}

/** Use of the machine by others. */
export interface Disturbance {
  /** Processor time of other processes and of the hypervisor, as a share of the time of all cores. */
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
  /** Sequences per micro-batch. */
  readonly batch: number;
  /** Tokens per sequence. */
  readonly length: number;
  /** Micro-batches per step. */
  readonly accumulation: number;
  /** Data set; `sst2` has labelled sentences for an encoder. The latter two have sequences of many lengths. */
  readonly data: 'random' | 'gsm8k' | 'sst2';
  /** Number of kernel threads. Default: all. */
  readonly threads?: number;
  /** Vocabulary size. Default: the shape's own. */
  readonly vocabulary?: number;
  /** An option of the trainer that is switched on for this row. */
  readonly feature?: Feature;
  /** The blocks in which the base stays in memory: `gguf` needs a model whose file has them; random weights can be in `nf4`. */
  readonly baseFormat?: 'nf4' | 'gguf';
}

/** Seconds of each part of a step, each the median over the steps. `other` is the time that no op accounts for. */
export interface StepSplit {
  readonly forward: number;
  readonly teacher: number;
  readonly losses: number;
  readonly backward: number;
  readonly optimizer: number;
  readonly data: number;
  readonly other: number;
}

/** Figures of the same work in PyTorch, run in turns with balora. */
export interface TorchPairs {
  readonly version: string;
  readonly tokensPerSecond: Spread;
  readonly peakBytes: number;
  /** balora's tokens/s over torch's, pair by pair. */
  readonly speedRatio: Spread;
  /** torch's peak memory over balora's, pair by pair. */
  readonly memoryRatio: Spread;
}

/** Fields of every row. */
export interface Measured {
  /** Name of the row, such as `balora-4x512`. */
  readonly name: string;
  readonly dtype: BenchDType;
  /** Use of the machine by others while the row was measured; older reports have it only for training rows. */
  readonly disturbance?: Disturbance;
}

export interface StepRow extends Measured {
  readonly kind: 'step';
  readonly shape: string;
  readonly workload: Workload;
  /** Tokens per step, without padding; the mean where steps differ. */
  readonly tokens: number;
  /** Supervised tokens per step; the mean where steps differ. */
  readonly supervisedTokens: number;
  readonly tokensPerSecond: number;
  /** Tokens per second of single steps. */
  readonly rate: Spread;
  /** Seconds of a step. */
  readonly seconds: Spread;
  readonly split: StepSplit;
  /** VmHWM of the process that ran this row alone; on a GPU, the largest sum of device memory in use. */
  readonly peakBytes: number;
  /** Useful operations per token, counted from the shapes. */
  readonly flopsPerToken: number;
  /** Seconds of the step's matrix products when they run alone. */
  readonly rooflineSeconds: number;
  /** `rooflineSeconds` as a share of the step's seconds. */
  readonly rooflineShare: number;
  /** Seconds of a step that had only these products, and its attention's operations at `gemmPeak`; 0: not measured. */
  readonly ceilingSeconds?: number;
  /** Rate of the fastest packed product in this process, at this row's dtype and threads. */
  readonly gemmPeak: number;
  /** Remarks for the reader, such as synthetic lengths or random weights. */
  readonly notes: readonly string[];
  readonly torch?: TorchPairs;
}

export interface MicroRow extends Measured {
  readonly kind: 'micro';
  /** The operands, in words: `x 2048x576`. */
  readonly shapes: string;
  readonly seconds: Spread;
  /** Operations or bytes of one call. */
  readonly work: number;
  /** Unit of `work`, which also chooses the peak rate that the row is compared with. */
  readonly unit: 'flop' | 'byte';
  readonly rate: number;
  readonly ceilingShare: number;
  /** Memory in bytes that one call needs beside its operands, results included. */
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
  /** Figures of PyTorch on the same weights, run in turns with balora. */
  readonly torch?: { version: string; seconds: Spread; capturedEnergy: number };
}

/** Seconds until something is ready: the first step of a process, or an adapter. */
export interface StartRow extends Measured {
  readonly kind: 'start';
  readonly seconds: Spread;
  /** The time in words. Default: from the start of the process to the beginning of the first step. */
  readonly meaning?: string;
  readonly notes: readonly string[];
}

/** A figure computed from other rows or from two measurements. */
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

/** Time and memory of a step as functions of one size, with all others fixed. */
export interface GrowthSeries {
  /** Name of the shape; `models` where shapes are what grows. */
  readonly shape: string;
  readonly dtype: BenchDType;
  /** The size that grows; `parameters` goes over shapes, those of the base. */
  readonly axis: 'length' | 'batch' | 'rank' | 'vocabulary' | 'parameters';
  /** The blocks in which the base stays in memory; absent: it has its values there. */
  readonly baseFormat?: 'nf4';
  /** The fixed sizes, in words. */
  readonly fixed: string;
  readonly points: readonly {
    readonly x: number;
    readonly seconds: number;
    readonly peakBytes: number;
  }[];
  /** Fit of the seconds. */
  readonly time: Fit;
  /** Fit of the peak memory in GiB. */
  readonly memory: Fit;
  /** Points that this machine could not measure. Default: none. */
  readonly absent?: readonly { readonly x: number; readonly reason: string }[];
}

export interface Report {
  readonly format: 1;
  readonly date: string;
  /** Commit of the measured code, with a plus where files were changed; null outside a checkout; absent in older reports. */
  readonly commit?: string | null;
  /** Name of the file or folder that was measured; absent for random weights. */
  readonly model?: string;
  readonly machine: Machine;
  readonly warnings: readonly string[];
  readonly rows: readonly Row[];
  readonly growth: readonly GrowthSeries[];
}

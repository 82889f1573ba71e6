/** What a benchmark run is asked for. */
import type { BenchDType } from './types.ts';

export interface BenchOptions {
  /** Rows and groups; default `all`, which leaves out `growth`. */
  only?: readonly string[];
  /** Default bf16. */
  dtype?: BenchDType;
  /** Shape of the random weights. Default smollm2-135m. */
  shape?: string;
  /** "cpu" or "cuda:0". Default cpu. */
  device?: string;
  /** A model's folder or .gguf file instead of random weights. */
  model?: string;
  /** GSM8K's train.jsonl; without it rows of the same lengths. */
  data?: string;
  /** A Python with torch: training rows and PiSSA are then run in turns with the recipe. */
  torch?: string;
  /** Pairs of runs beside torch. Default 3. */
  pairs?: number;
  /** Measured steps of each of torch's runs, after one other. Default 2. */
  torchSteps?: number;
  /** Measured steps of a run, after two others. Default 5; beside torch 3. */
  steps?: number;
  /** Told what is measured next. */
  onProgress?: (name: string) => void;
}

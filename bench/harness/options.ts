/** Options of a benchmark run. */
import type { BenchDType } from './types.ts';

export interface BenchOptions {
  /** Names of rows and groups. Default `all`, which leaves out `growth`. */
  only?: readonly string[];
  /** Dtype of the frozen weights and activations. Default bf16. */
  dtype?: BenchDType;
  /** Shape of the random weights. Default smollm2-135m. */
  shape?: string;
  /** Device, such as "cuda:0". Default "cpu". */
  device?: string;
  /** Folder or .gguf file of a model, used instead of random weights. */
  model?: string;
  /** Path of GSM8K's train.jsonl. Default: synthetic rows of the same lengths. */
  data?: string;
  /** A Python with torch: training rows and PiSSA then run in turns with the PyTorch recipe. */
  torch?: string;
  /** Pairs of runs with torch. Default 3. */
  pairs?: number;
  /** Measured steps of each torch run, after one warm-up step. Default 2. */
  torchSteps?: number;
  /** Measured steps of a run, after two warm-up steps. Default 5; with torch 3. */
  steps?: number;
  /** Called with the name of each row before it is measured. */
  onProgress?: (name: string) => void;
}

/** The table of kernel rows at the model's shapes, one or more rows per kernel. */
import { kMicroDecoding } from './decoding.ts';
import { kMicroElementwise } from './elementwise.ts';
import { kMicroIndices } from './indices.ts';
import type { MicroTable } from './kit.ts';
import { kMicroLinalg } from './linalg.ts';
import { kMicroLinears } from './linears.ts';
import { kLargeMicroLosses, kMicroLosses } from './losses.ts';
import { kMicroNorms } from './norms.ts';
import { kMicroOptimizers } from './optimizers.ts';

export const kMicroTable: MicroTable = [
  ...kMicroLinears,
  ...kMicroDecoding,
  ...kMicroNorms,
  ...kMicroLosses,
  ...kMicroLinalg,
  ...kMicroElementwise,
  ...kMicroIndices,
  ...kMicroOptimizers,
];

export const kLargeMicroTable = kLargeMicroLosses;

/** Kernels without a row, and the reason. */
export const kNotTimed: Readonly<Record<string, string>> = {
  check_finite: 'runs inside the ops of anomaly mode, never as one that has a time of its own',
};

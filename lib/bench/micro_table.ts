/** The kernels at the model's shapes, one row or more each. */
import { kMicroElementwise } from './micro_elementwise.ts';
import { kMicroIndices } from './micro_indices.ts';
import type { MicroTable } from './micro_kit.ts';
import { kMicroLinalg } from './micro_linalg.ts';
import { kMicroLinears } from './micro_linears.ts';
import { kLargeMicroLosses, kMicroLosses } from './micro_losses.ts';
import { kMicroNorms } from './micro_norms.ts';
import { kMicroOptimizers } from './micro_optimizers.ts';

export const kMicroTable: MicroTable = [
  ...kMicroLinears,
  ...kMicroNorms,
  ...kMicroLosses,
  ...kMicroLinalg,
  ...kMicroElementwise,
  ...kMicroIndices,
  ...kMicroOptimizers,
];

export const kLargeMicroTable = kLargeMicroLosses;

/** Kernels without a row, and why. */
export const kNotTimed: Readonly<Record<string, string>> = {
  check_finite: 'runs inside the ops of anomaly mode, never as one that has a time of its own',
};

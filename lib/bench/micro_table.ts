/** The kernels of a training step at the model's shapes, one row each. */

import type { MicroTable } from './micro_kit.ts';
import { kMicroLinears } from './micro_linears.ts';
import { kLargeMicroLosses, kMicroLosses } from './micro_losses.ts';
import { kMicroMemory } from './micro_memory.ts';
import { kMicroNorms } from './micro_norms.ts';

export const kMicroTable: MicroTable = [
  ...kMicroLinears,
  ...kMicroNorms,
  ...kMicroLosses,
  ...kMicroMemory,
];

export const kLargeMicroTable = kLargeMicroLosses;

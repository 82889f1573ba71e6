/**
 * Random weights for a configuration without a checkpoint: for measurements and tests, where only shapes matter. A value
 * depends on seed, name and index alone.
 */
import { createHash } from 'node:crypto';
import { ones, randn, zeros } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import type { WeightReadOptions, WeightSource } from './weights.ts';

export interface RandomWeightOptions {
  readonly seed: number;
  /** Standard deviation of the matrices. */
  readonly deviation: number;
}

/** Source of transformers' initial values: normal matrices, ones for vectors named weight (of norms), zeros for others (biases). */
export class RandomWeights implements WeightSource {
  readonly path = 'random weights';

  constructor(
    readonly shapes: ReadonlyMap<string, readonly number[]>,
    private readonly options: RandomWeightOptions,
  ) {}

  read(name: string, { dtype }: WeightReadOptions): Tensor {
    const shape = this.shapes.get(name) as readonly number[];
    if (shape.length === 1) return (name.endsWith('.weight') ? ones : zeros)(shape, { dtype });
    const { seed, deviation } = this.options;
    return randn(shape, { dtype, deviation, seed: seedOf(seed, name) });
  }

  close(): void {}
}

/** A 48-bit seed of its own for every tensor. */
function seedOf(seed: number, name: string): number {
  return createHash('sha256').update(`${seed}/${name}`).digest().readUIntBE(0, 6);
}

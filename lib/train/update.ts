/**
 * The optimiser's part of a step: the norm of the gradients, and the update. Both run as graphs if the micro-batches do and the
 * optimiser reads its scalars from the device (AdamW); other optimisers update op by op.
 */
import { copyOf } from '../adapters/copies.ts';
import type { NamedTensors } from '../graph.ts';
import { shapesOf } from '../graph_cache.ts';
import { clippedNorm } from '../optim/clip.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import type { Tensor } from '../tensor.ts';
import type { StepGraphs } from './graphs.ts';

export interface UpdateParts {
  readonly parameters: readonly Tensor[];
  readonly optimizer: Optimizer;
  /** Maximum norm for clipping; 0 only measures the norm. */
  readonly maxNorm: number;
  readonly graphs: StepGraphs | null;
}

/** The update of one step, computed from its gradients. */
export class Update {
  private constructor(
    private readonly parts: UpdateParts,
    private readonly normTensor: Tensor,
    /** () f64 by which the update multiplies the gradients; null: 1. */
    readonly coefficient: Tensor | null,
  ) {}

  /** Enqueues the computation of the norm. */
  static begin(parts: UpdateParts): Update {
    const { parameters, maxNorm, graphs } = parts;
    const body = () => clippedNorm(parameters, { maxNorm });
    if (graphs === null) {
      const { norm, coefficient } = body();
      return new Update(parts, norm, coefficient);
    }
    const { results, release } = graphs.cache.run(`norm ${graphs.gradients.reached}`, {}, body);
    const { norm, coefficient } = results;
    // The graph of the update may overwrite what this one made.
    const update = new Update(parts, norm.detach(), coefficient && copyOf(coefficient));
    release();
    return update;
  }

  /** The norm of the gradients before clipping; waits for the engine to compute it. */
  norm(): Promise<number> {
    return this.normTensor.item();
  }

  /** Enqueues the update of the parameters. */
  step(learningRate: number): void {
    const { optimizer, graphs } = this.parts;
    optimizer.begin(learningRate);
    const { recordingKey } = optimizer;
    const { coefficient } = this;
    if (graphs === null || recordingKey === null) {
      optimizer.finish(coefficient);
      return;
    }
    const inputs = { coefficient: coefficient?.detach() ?? null };
    const update = (now: NamedTensors): NamedTensors => {
      optimizer.finish(now.coefficient ?? null);
      return {};
    };
    graphs.cache.run(`update ${shapesOf(inputs)} ${recordingKey}`, inputs, update).release();
  }

  dispose(): void {
    this.normTensor.dispose();
    this.coefficient?.dispose();
  }
}

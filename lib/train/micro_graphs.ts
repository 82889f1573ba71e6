/**
 * Micro-batches of a language model as graphs: teacher, forward, losses and backward of a shape that was met before are
 * launched as one. What changes from step to step (ids, rows, weights of the terms, shares of the window) are inputs.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { BaLoraLoss, LossInputs, TeacherSummary } from '../losses/nlg.ts';
import type { ModelInputs } from '../models/model.ts';
import { withPhase } from '../runtime.ts';
import { noGrad, type Tensor } from '../tensor.ts';
import { GradientBuffers } from './gradient_buffers.ts';
import { GraphCache, type Named, type Run, shapesOf } from './graph_cache.ts';

/** A micro-batch's part in the gradient. */
export interface MicroInputs {
  readonly model: ModelInputs;
  readonly loss: LossInputs;
  /** Where the teacher ran before; null: it runs here, if the loss has a term for it. */
  readonly teacherHidden: Tensor | null;
  readonly summary: TeacherSummary | null;
  /** Whether the SVD term has a gradient. */
  readonly svdGradient: boolean;
}

/** Values of the terms, see MicroBatchLoss. */
export type MicroTerms = Named<'sums' | 'svd'>;

export class MicroGraphs {
  readonly gradients: GradientBuffers;
  readonly cache: GraphCache;
  /** Leaves that a graph's backward comes to, by its key. */
  readonly #reached = new Map<string, readonly number[]>();

  constructor(
    private readonly tuned: TunedModel,
    private readonly loss: BaLoraLoss,
  ) {
    this.gradients = new GradientBuffers(tuned.parameters().map(({ tensor }) => tensor));
    this.cache = new GraphCache(tuned.model.device);
  }

  /** Adds a micro-batch's gradient. Takes the inputs over, but for what the teacher made. */
  run(inputs: MicroInputs): Run<MicroTerms> {
    const { model, loss, summary, svdGradient } = inputs;
    const { length, ...tensors } = model;
    const named: Named = {
      ...tensors,
      ...{ ...loss },
      teacherHidden: inputs.teacherHidden?.detach() ?? null,
      mean: summary?.mean.detach() ?? null,
      entropy: summary?.entropy.detach() ?? null,
    };
    const key = `${length} ${svdGradient} ${shapesOf(named)}`;
    let reached = this.#reached.get(key) ?? [];
    const run = withPhase('graph', () =>
      this.cache.run(key, named, (now) => {
        const result = this.#losses(inputs, now);
        reached = this.gradients.watch(() => result.loss.backward());
        return { sums: result.sums.detach(), svd: result.svd?.detach() ?? null };
      }),
    );
    if (this.cache.holds(key)) this.#reached.set(key, reached);
    this.gradients.reach(reached);
    return run;
  }

  dispose(): void {
    this.cache.dispose();
    this.gradients.dispose();
  }

  #losses({ model: { length }, svdGradient }: MicroInputs, now: Named) {
    const { tuned, loss } = this;
    const model = { ...now, length } as unknown as ModelInputs;
    const given = now as unknown as LossInputs;
    const summary = now.mean && now.entropy ? { mean: now.mean, entropy: now.entropy } : null;
    const teacher =
      loss.terms.consistency && summary === null
        ? (now.teacherHidden ??
          tuned.withTeacher((base) => noGrad(() => base.forwardPrepared(model))))
        : null;
    const hidden = tuned.model.forwardPrepared(model);
    return loss.computePrepared({ hidden, teacher, summary, inputs: given, svdGradient });
  }
}

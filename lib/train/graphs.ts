/**
 * Graphs of micro-batches: for a shape that has been seen before, the teacher's pass, the forward pass, the losses and the backward pass
 * are launched together. Inputs of a graph are the values that change from step to step: ids, rows, weights
 * of the terms, shares of the window.
 */
import { copyOf } from '../adapters/copies.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { NamedTensors } from '../graph.ts';
import { GraphCache, shapesOf } from '../graph_cache.ts';
import type { ComputedLoss, TermSums } from '../losses/term.ts';
import type { Model } from '../models/index.ts';
import { withPhase } from '../runtime.ts';
import type { Inputs, Objective } from '../tasks/task.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import { GradientBuffers } from './gradient_buffers.ts';

/** Facts of a graph that its tensors do not tell. */
interface Recorded {
  /** The leaves that its backward pass reaches. */
  readonly reached: readonly number[];
  /** The values of the terms; their tensors are results of the graph, by their index. */
  readonly values: ComputedLoss['values'];
  readonly results: readonly Tensor[];
}

/** The graphs and gradient buffers of a run; the update of a step uses them as well, see {@link Update}. */
export class StepGraphs {
  readonly gradients: GradientBuffers;
  readonly cache: GraphCache;
  readonly #recorded = new Map<string, Recorded>();
  #phase = '';

  constructor(tuned: TunedModel<Model>) {
    const trained = tuned.parameters().map(({ tensor }) => tensor);
    this.gradients = new GradientBuffers(trained.filter(({ requiresGrad }) => requiresGrad));
    this.cache = new GraphCache(tuned.model.device);
  }

  /** Runs a micro-batch, adds its gradients to the buffers, and the values of its terms to `sums`. It takes over the inputs' tensors. */
  run(
    tuned: TunedModel<Model>,
    objective: Objective,
    { inputs, sums }: { inputs: Inputs; sums: TermSums },
  ): void {
    const { cache, gradients } = this;
    const phase = tuned.beforeRecorded?.() ?? '';
    // Graphs of another phase are not needed again.
    if (phase !== this.#phase) cache.dispose();
    this.#phase = phase;
    const key = `${inputs.key} ${phase} ${shapesOf(inputs.tensors)}`;
    let recorded = this.#recorded.get(key);
    const run = withPhase('graph', () =>
      cache.run(key, inputs.tensors, (tensors) => {
        const now = { ...inputs, tensors };
        const { loss, values } = objective.losses(now, objective.forward(now)) as ComputedLoss;
        const reached = gradients.watch(() => loss?.backward());
        const results = [...new Set(values.map(({ tensor }) => tensor))];
        recorded = { reached, values, results };
        return Object.fromEntries(results.map((tensor, i) => [i, tensor.detach()])) as NamedTensors;
      }),
    );
    const { reached, values, results } = recorded as Recorded;
    if (cache.has(key)) this.#recorded.set(key, { reached, values, results });
    gradients.markReached(reached);
    scope(() => {
      // The next run of the graph overwrites its results.
      const copies = noGrad(() => results.map((_, i) => copyOf(run.results[i] as Tensor)));
      sums.add({
        values: values.map((value) => ({
          ...value,
          tensor: copies[results.indexOf(value.tensor)] as Tensor,
        })),
        counts: inputs.batch.counts,
      });
    });
    run.release();
  }

  dispose(): void {
    this.cache.dispose();
    this.gradients.dispose();
  }
}

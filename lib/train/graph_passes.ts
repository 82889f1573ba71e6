/**
 * Micro-batches as graphs: teacher, forward, losses and backward of a shape that was met before are launched as one. What
 * changes from step to step (ids, rows, weights of the terms, shares of the window) are inputs.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { Term } from '../losses/term.ts';
import type { Model } from '../models/index.ts';
import { copy_, zeros } from '../ops/index.ts';
import { synchronize, withPhase } from '../runtime.ts';
import type { Named, RecordedLoss, RecordedPass, TaskLoss } from '../tasks/task.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import { GradientBuffers } from './gradient_buffers.ts';
import { GraphCache, type Run, shapesOf } from './graph_cache.ts';
import { forgetTeacher, isEmpty, type PassInput } from './pass.ts';
import type { WindowBatch } from './window.ts';

/** Graphs that the update of a step may share, see {@link Update}. */
export interface StepGraphs {
  readonly gradients: GradientBuffers;
  readonly cache: GraphCache;
}

/** Micro-batches computed by graphs where one fits, else op by op. */
export class GraphPasses {
  readonly terms: readonly Term[];
  readonly graphs: StepGraphs;
  /** Leaves that a graph's backward comes to, by its key. */
  readonly #reached = new Map<string, readonly number[]>();

  /**
   * @param loss one that has a form to record
   * @param keepsTeacher whether the teacher's part comes from a cache, and so is no part of the graph
   */
  constructor(
    tuned: TunedModel<Model>,
    readonly loss: TaskLoss,
    private readonly keepsTeacher: boolean,
  ) {
    this.terms = loss.terms;
    this.graphs = {
      gradients: new GradientBuffers(tuned.parameters().map(({ tensor }) => tensor)),
      cache: new GraphCache(tuned.model.device),
    };
  }

  begin(): void {
    this.graphs.gradients.begin();
  }

  end(): void {
    this.graphs.gradients.end();
  }

  async run(micro: WindowBatch, { sums, ...input }: PassInput): Promise<void> {
    if (isEmpty(micro)) return;
    const { loss } = this;
    const recorded = loss.recorded as RecordedLoss;
    // A graph has the teacher's pass inside, unless its part is kept.
    if (micro.teacher === null && this.keepsTeacher) micro.teacher = await loss.teach(micro);
    const { teacher } = micro;
    const { results, release } = this.#launch(recorded.prepare({ ...input, micro, teacher }));
    scope(() => sums.add(recorded.valuesOf(copiesOf(results), micro)));
    release();
    await synchronize();
    forgetTeacher(micro, loss);
  }

  dispose(): void {
    this.graphs.cache.dispose();
    this.graphs.gradients.dispose();
    this.loss.dispose();
  }

  /** Adds a micro-batch's gradient. */
  #launch({ key: own, inputs, run: body }: RecordedPass): Run<Named> {
    const { cache, gradients } = this.graphs;
    const key = `${own} ${shapesOf(inputs)}`;
    let reached = this.#reached.get(key) ?? [];
    const run = withPhase('graph', () =>
      cache.run(key, inputs, (now) => {
        const { loss, results } = body(now);
        reached = gradients.watch(() => loss.backward());
        return results;
      }),
    );
    if (cache.holds(key)) this.#reached.set(key, reached);
    gradients.reach(reached);
    return run;
  }
}

/** Values that the next run writes over, in memory of their own. */
function copiesOf(results: Named): Named {
  return Object.fromEntries(
    Object.entries(results).map(([name, value]) => [name, value && copyOf(value)]),
  );
}

function copyOf(x: Tensor): Tensor {
  return noGrad(() => copy_(zeros(x.shape, { dtype: x.dtype, device: x.device }), x));
}

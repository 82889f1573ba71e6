/**
 * Micro-batches run as graphs: for a shape that has been seen before, the teacher's pass, the forward pass, the losses and the
 * backward pass are launched together. Values that change from step to step (ids, rows, weights of the terms, shares of the
 * window) are inputs of the graph.
 */
import { copyOf } from '../adapters/copies.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { NamedTensors } from '../graph.ts';
import { GraphCache, type GraphRun, shapesOf } from '../graph_cache.ts';
import type { Term } from '../losses/term.ts';
import type { Model } from '../models/index.ts';
import { synchronize, withPhase } from '../runtime.ts';
import type { RecordedLoss, RecordedPass, TaskLoss } from '../tasks/task.ts';
import { noGrad, scope } from '../tensor.ts';
import { GradientBuffers } from './gradient_buffers.ts';
import { isEmpty, type PassInput, releaseTeacher } from './pass.ts';
import type { WindowBatch } from './window.ts';

/** The graphs and gradient buffers that the update of a step can use as well, see {@link Update}. */
export interface StepGraphs {
  readonly gradients: GradientBuffers;
  readonly cache: GraphCache;
}

/** Computes micro-batches by graphs where possible, and op by op otherwise. */
export class GraphPasses {
  readonly terms: readonly Term[];
  readonly graphs: StepGraphs;
  /** The leaves that each graph's backward pass reaches, by the key of the graph. */
  readonly #reached = new Map<string, readonly number[]>();
  #phase = '';

  /**
   * Makes the passes of a run.
   * @param loss a loss with a form that graphs can record
   * @param cachesTeacher whether the teacher's outputs are cached, so that they are an input of the graph
   */
  constructor(
    private readonly tuned: TunedModel<Model>,
    readonly loss: TaskLoss,
    private readonly cachesTeacher: boolean,
  ) {
    this.terms = loss.terms;
    const trained = tuned.parameters().map(({ tensor }) => tensor);
    this.graphs = {
      gradients: new GradientBuffers(trained.filter(({ requiresGrad }) => requiresGrad)),
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
    // The graph includes the teacher's pass, unless the teacher's outputs are cached.
    if (micro.teacher === null && this.cachesTeacher) {
      const at = { step: input.at.step, microBatch: micro.index };
      micro.teacher = await loss.runTeacher(micro, at);
    }
    const { teacher } = micro;
    const { results, release } = this.#launch(recorded.prepare({ ...input, micro, teacher }));
    scope(() => sums.add(recorded.valuesOf(copiesOf(results), micro)));
    release();
    await synchronize();
    releaseTeacher(micro, loss);
  }

  dispose(): void {
    this.graphs.cache.dispose();
    this.graphs.gradients.dispose();
    this.loss.dispose();
  }

  /** Runs a micro-batch and adds its gradients to the buffers. */
  #launch({ key: own, inputs, run: body }: RecordedPass): GraphRun<NamedTensors> {
    const { cache, gradients } = this.graphs;
    const phase = this.tuned.beforeRecorded?.() ?? '';
    // Graphs of another phase are not needed again.
    if (phase !== this.#phase) cache.dispose();
    this.#phase = phase;
    const key = `${own} ${phase} ${shapesOf(inputs)}`;
    let reached = this.#reached.get(key) ?? [];
    const run = withPhase('graph', () =>
      cache.run(key, inputs, (now) => {
        const { loss, results } = body(now);
        reached = gradients.watch(() => loss.backward());
        return results;
      }),
    );
    if (cache.has(key)) this.#reached.set(key, reached);
    gradients.markReached(reached);
    return run;
  }
}

/** Copies of a graph's results, which the next run of the graph overwrites. */
function copiesOf(results: NamedTensors): NamedTensors {
  return noGrad(() =>
    Object.fromEntries(
      Object.entries(results).map(([name, value]) => [name, value && copyOf(value)]),
    ),
  );
}

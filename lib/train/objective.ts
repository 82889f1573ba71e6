/**
 * What a step minimises, over the micro-batches of its window: teacher, forward, losses, backward. Each loss goes into
 * backward() ALREADY weighted with its share of the window, so that the gradients add up to the window's.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { BaLoraLoss, type TeacherSummary, type TermWeights, WindowTerms } from '../losses/nlg.ts';
import type { CausalLM, Model } from '../models/index.ts';
import { copy_, zeros } from '../ops/index.ts';
import { synchronize, withPhase } from '../runtime.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import { CustomObjective } from './custom_objective.ts';
import { yieldToEventLoop } from './events.ts';
import type { ResolvedRegularizers } from './methods.ts';
import { MicroGraphs } from './micro_graphs.ts';
import { type CombinedTerms, weightedTerms } from './record.ts';
import { teach, teacherHead } from './teacher.ts';
import { TeacherCache } from './teacher_cache.ts';
import { type TeacherEntropy, termWeights } from './term_weights.ts';
import type { Batch, LossFunction } from './types.ts';
import type { Window } from './window.ts';

/** One step's work. */
export interface WindowInput<M extends Model = CausalLM, B = Batch> {
  readonly tuned: TunedModel<M>;
  readonly window: Window<B>;
  /** From 0. */
  readonly step: number;
  readonly totalSteps: number;
  readonly signal?: AbortSignal | undefined;
}

export interface Objective<M extends Model = CausalLM, B = Batch> {
  /** Adds the window's gradients; its terms, or null if the signal stopped it on the way. */
  accumulate(input: WindowInput<M, B>): Promise<CombinedTerms | null>;
  /** Those that it runs micro-batches by; null: none. */
  readonly graphs: MicroGraphs | null;
  dispose(): void;
}

export function makeObjective(
  tuned: TunedModel,
  regularizers: ResolvedRegularizers,
  loss: LossFunction | null = null,
  resources: ObjectiveResources = {},
): Objective {
  return loss === null
    ? new BaLoraObjective(tuned, regularizers, resources)
    : new CustomObjective(tuned, loss);
}

/** What an objective may use. */
export interface ObjectiveResources {
  /** Bound on the logits in work, see BaLoraOptions. */
  chunkBytes?: number;
  /** Whether micro-batches of shapes that repeat are run as graphs. Default false. */
  captureGraphs?: boolean;
  /** File in which the teacher's part is kept from epoch to epoch, null for a temporary one; left out: it is not kept. */
  teacherCache?: string | null;
}

interface MicroBatch {
  readonly batch: Batch;
  /** Within its window. */
  readonly index: number;
  readonly teacher: Teacher | null;
  readonly weights: TermWeights;
  readonly terms: WindowTerms;
}

/** What a loss reads of the teacher: of the selected rows, hidden states (M,C) or their summary. */
type Teacher = { readonly hidden: Tensor } | { readonly summary: TeacherSummary };

/** Cross-entropy + l1 consistency + l2 diversity + l3 SVD; a weight of 0 leaves its term out. */
class BaLoraObjective implements Objective {
  private readonly loss: BaLoraLoss;
  private readonly cache: TeacherCache | null;
  readonly graphs: MicroGraphs | null;

  constructor(
    tuned: TunedModel,
    private readonly options: ResolvedRegularizers,
    { chunkBytes = 0, teacherCache, captureGraphs = false }: ObjectiveResources,
  ) {
    const { model } = tuned;
    const { head } = model;
    this.loss = new BaLoraLoss(
      { weight: head.weight, softcap: head.softcap, teacherWeight: teacherHead(tuned) },
      {
        ...options,
        chunkBytes,
        terms: {
          consistency: options.consistencyWeight > 0,
          diversity: options.diversityWeight > 0,
          svd: options.svdWeight > 0,
        },
      },
    );
    const [vocabulary, channels] = head.weight.shape as [number, number];
    const { temperature } = this.loss.options;
    const kind = { model: model.nameOrPath, dtype: model.dtype, channels, vocabulary, temperature };
    this.graphs = captureGraphs ? new MicroGraphs(tuned, this.loss) : null;
    this.cache =
      teacherCache === undefined ? null : new TeacherCache(teacherCache, kind, model.device);
  }

  async accumulate(input: WindowInput): Promise<CombinedTerms | null> {
    const { window, signal } = input;
    const teachers = new Map<Batch, Teacher>();
    const terms = new WindowTerms(this.loss.terms);
    try {
      const weights = await termWeights(this.options, input, () => this.entropy(input, teachers));
      if (weights === null) return null;
      this.graphs?.gradients.begin();
      for (const [index, { batch }] of window.batches.entries()) {
        if (signal?.aborted) return null;
        if (this.loss.select(batch).rows.length === 0) continue; // no loss reads any of it
        // A graph has the teacher's pass inside, where nothing of it is kept.
        const before = this.loss.terms.consistency && (this.graphs === null || this.cache !== null);
        const teacher =
          teachers.get(batch) ?? (before ? await this.teach(input, batch, teachers) : null);
        const micro = { batch, index, teacher, weights, terms };
        await (this.graphs === null
          ? this.microBatch(input, micro)
          : this.microGraph(this.graphs, input, micro));
        if (teacher !== null) forget(teacher);
        teachers.delete(batch);
      }
      this.graphs?.gradients.end();
      return weightedTerms(await terms.read(), weights);
    } finally {
      for (const teacher of teachers.values()) forget(teacher);
    }
  }

  dispose(): void {
    this.graphs?.dispose();
    this.loss.dispose();
    this.cache?.close();
  }

  private async microBatch({ tuned, window, step }: WindowInput, micro: MicroBatch): Promise<void> {
    const { batch, index, teacher, weights, terms } = micro;
    const taught =
      teacher === null
        ? {}
        : 'hidden' in teacher
          ? { teacherHidden: teacher.hidden }
          : { teacher: teacher.summary };
    const { rows } = this.loss.select(batch);
    let made: Tensor | null = null;
    try {
      tuned.trainingPass({ step, microBatch: index });
      const hidden = withPhase('forward', () => tuned.model.forward(batch, { rows }));
      made = hidden;
      await yieldToEventLoop();
      scope(() => {
        const result = withPhase('losses', () =>
          this.loss.compute({ hidden, ...taught, batch, weights, window: window.totals }),
        );
        terms.add(result);
        withPhase('backward', () => result.loss?.backward());
      });
    } finally {
      tuned.trainingPass(null);
      made?.dispose();
    }
    await synchronize();
  }

  /** microBatch() by way of a graph, where one fits. */
  private async microGraph(
    graphs: MicroGraphs,
    { tuned: { model }, window }: WindowInput,
    { batch, teacher, weights, terms }: MicroBatch,
  ): Promise<void> {
    const selected = this.loss.select(batch);
    const { results, release } = graphs.run({
      // How many rows are the same differs from batch to batch, and graphs are of one shape.
      model: model.prepare(batch, { rows: selected.rows, sharePrefixes: false }),
      loss: this.loss.prepare(selected, { weights, window: window.totals }, model.device),
      teacherHidden: teacher !== null && 'hidden' in teacher ? teacher.hidden : null,
      summary: teacher !== null && 'summary' in teacher ? teacher.summary : null,
      svdGradient: weights.svd !== 0,
    });
    const { supervised, regularizedRows } = selected;
    scope(() => {
      const { sums, svd } = results;
      const values = { loss: null, sums: sums && copyOf(sums), svd: svd && copyOf(svd) };
      terms.add({ ...values, supervised, selected: regularizedRows.length });
    });
    release();
    await synchronize();
  }

  /** The teacher's part in a micro-batch, kept until its loss is made. */
  private async teach(
    { tuned }: WindowInput,
    batch: Batch,
    teachers: Map<Batch, Teacher>,
  ): Promise<Teacher> {
    const teacher = this.cache
      ? { summary: await this.summary(this.cache, tuned, batch) }
      : { hidden: teach(tuned, batch, this.loss.select(batch).rows) };
    teachers.set(batch, teacher);
    await yieldToEventLoop();
    return teacher;
  }

  /** From the cache, or into it. The first epoch reads the same numbers as the later ones. */
  private async summary(
    cache: TeacherCache,
    tuned: TunedModel,
    batch: Batch,
  ): Promise<TeacherSummary> {
    const selected = this.loss.select(batch);
    const found = cache.take(batch, selected);
    if (found !== null) return found;
    const hidden = teach(tuned, batch, selected.rows);
    const made = withPhase('teacher', () => scope(() => this.loss.summarize(hidden, selected)));
    hidden.dispose();
    await cache.put(batch, selected, made);
    return made;
  }

  /** The teacher's mean entropy over the window, for the adaptive schedule. What was computed is kept for the losses. */
  private async entropy(
    input: WindowInput,
    teachers: Map<Batch, Teacher>,
  ): Promise<TeacherEntropy | null> {
    let [entropy, rows] = [0, 0];
    for (const { batch } of input.window.batches) {
      if (input.signal?.aborted) return null;
      if (this.loss.select(batch).rows.length === 0) continue;
      const teacher = await this.teach(input, batch, teachers);
      for (const value of await this.entropies(teacher, batch)) {
        entropy += value;
        rows++;
      }
    }
    const vocabulary = input.tuned.model.head.weight.shape[0] as number;
    return { mean: rows > 0 ? entropy / rows : 0, most: Math.log(vocabulary) };
  }

  /** At T, of the rows of the regularizers. */
  private async entropies(teacher: Teacher, batch: Batch): Promise<number[]> {
    if ('summary' in teacher) {
      const { regularized } = this.loss.select(batch);
      const values = Array.from((await teacher.summary.entropy.data()) as Float64Array);
      return regularized === null ? values : values.filter((_, i) => regularized[i] === 1);
    }
    const measured = scope(() => this.loss.teacherEntropyRows(teacher.hidden, batch));
    if (measured === null) return [];
    const values = (await measured.data()) as Float64Array;
    measured.dispose();
    const rows = values.length / kRowColumns;
    return Array.from(
      { length: rows },
      (_, i) => values[i * kRowColumns + kEntropyColumn] as number,
    );
  }
}

/** Values that the next run writes over, in memory of their own. */
function copyOf(x: Tensor): Tensor {
  return noGrad(() => copy_(zeros(x.shape, { dtype: x.dtype, device: x.device }), x));
}

function forget(teacher: Teacher): void {
  for (const tensor of 'hidden' in teacher ? [teacher.hidden] : Object.values(teacher.summary)) {
    tensor.dispose();
  }
}

/** Columns of the rows of teacherEntropyRows. */
const kRowColumns = 3;
const kEntropyColumn = 2;

/**
 * The part that causal language models and encoder-decoders have in common: a head over a vocabulary that is one matrix, rows
 * that each predict one id, and the terms of {@link HeadLoss} on the rows that some term uses.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { Batch } from '../data/collate.ts';
import { evaluate } from '../eval/evaluate.ts';
import { HeadLoss, type LossInputs } from '../losses/head_loss.ts';
import {
  type Positions,
  type RowsOfBatch,
  type SelectedRows,
  selectRows,
} from '../losses/positions.ts';
import type { Term } from '../losses/term.ts';
import type { MicroBatchLoss } from '../losses/term_sums.ts';
import { kLanguageModelTerms } from '../losses/terms/list.ts';
import type { CausalLM, ForwardOptions, Head, Model, Seq2SeqLM } from '../models/index.ts';
import type { ModelInputs } from '../models/model.ts';
import { choice } from '../options/kinds.ts';
import type { TeacherSummary } from '../ops/index.ts';
import { withPhase } from '../runtime.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import { yieldToEventLoop } from './event_loop.ts';
import type {
  LossPass,
  LossSettings,
  MicroBatch,
  Named,
  RecordedLoss,
  RecordedPass,
  StudentOutputs,
  Task,
  TaskLoss,
  TaskMetrics,
  TaskName,
} from './task.ts';
import { type CachedSequence, TeacherCache } from './teacher_cache.ts';

/** A model with a head over its vocabulary; B is what its forward takes. */
export interface HeadModel<B> extends Model {
  readonly head: Head;
  forward(batch: B & Parameters<Model['forward']>[0], options?: ForwardOptions): Tensor;
}

/** The rows of a batch that predict: of an encoder-decoder those of its decoder. */
export type PredictingRows = RowsOfBatch;

/** Properties in which the kinds of language models differ. */
export interface LanguageModelKind<B> {
  rowsOf(batch: B): PredictingRows;
  /** Real tokens, padding not counted. */
  tokensOf(batch: B): number;
  /** The sequences of a batch as a kept teacher knows them again. */
  sequencesOf(batch: B): CachedSequence[];
}

/** Options of language models, beside those of their terms. */
export const languageModelOptions = {
  /** Rows of the regularizers; default `supervised`. */
  positions: choice({
    choices: ['supervised', 'non_padding', 'label_aligned'],
    default: 'supervised',
    help: 'rows that are regularized',
  }),
};

/** An evaluation of a language model has its loss alone to be judged by, and no best step unless asked for. */
const kMetrics: TaskMetrics = {
  names: ['loss'],
  standard: null,
  subject: 'a language model',
};

/** The choice of rows of a batch, and their counts. */
function selectOf<B>(batch: B, kind: LanguageModelKind<B>, positions: Positions): MicroBatch<B> {
  const selected = selectRows(kind.rowsOf(batch), positions);
  const { supervised, regularizedRows } = selected;
  const counts = { tokens: kind.tokensOf(batch), supervised, regularized: regularizedRows.length };
  return { batch, selected, counts };
}

/** Real rows of a side of a batch. */
export function realRows({
  inputIds,
  lengths,
}: Pick<Batch, 'inputIds'> & { readonly lengths?: Int32Array | undefined }): number {
  return lengths ? lengths.reduce((sum, length) => sum + length, 0) : inputIds.length;
}

/** The teacher's own head where it is another than the student's: the head is trained, or saved with the adapter. */
export function teacherHead<B>(tuned: TunedModel<HeadModel<B>>): Tensor | null {
  if (!tuned.hasTeacher) return null;
  const { weight } = tuned.withTeacher((teacher) => teacher.head);
  return weight === tuned.model.head.weight ? null : weight;
}

/** The teacher's hidden states: (N,C), or (M,C) where M rows are asked for. */
export function teacherStates<B>(
  tuned: TunedModel<HeadModel<B>>,
  batch: B,
  rows?: Int32Array,
): Tensor {
  return withPhase('teacher', () =>
    tuned.withTeacher((model) => noGrad(() => model.forward(batch as never, { rows }))),
  );
}

/** The task of a kind of language model; what only one kind knows is given. */
export function languageModelTask<M extends HeadModel<B> & (CausalLM | Seq2SeqLM), B>(
  name: TaskName,
  kind: LanguageModelKind<B>,
  own: Pick<Task<M, B>, 'tunes' | 'graphObstacle' | 'cacheObstacle'>,
): Task<M, B> {
  return {
    ...own,
    name,
    terms: kLanguageModelTerms,
    options: languageModelOptions,
    select: (batch, { positions }) => selectOf(batch, kind, positions as Positions),
    loss: (tuned, settings) => new LanguageModelLoss(tuned, kind, settings),
    evaluate: (tuned, batches, options) => evaluate<M>(tuned, batches as never, options),
    metrics: () => kMetrics,
    check: () => {},
    lossObstacle: null,
    teacherObstacle: null,
  };
}

/** The teacher as a loss reads it: hidden states (M,C) of the selected rows, or their summary. */
type Teacher = { readonly hidden: Tensor } | { readonly summary: TeacherSummary };

/** The loss of a run of a language model. */
export class LanguageModelLoss<B> implements TaskLoss<B, Teacher> {
  readonly terms: readonly Term[];
  readonly mostEntropy: number;
  readonly recorded: RecordedLoss<B, Teacher>;
  readonly #loss: HeadLoss;
  readonly #cache: TeacherCache | null;
  readonly #layers: readonly number[];

  constructor(
    private readonly tuned: TunedModel<HeadModel<B>>,
    private readonly kind: LanguageModelKind<B>,
    { terms, regularizers, chunkBytes = 0, teacherCache }: LossSettings,
  ) {
    const { model } = tuned;
    const { head } = model;
    this.terms = terms;
    this.#loss = new HeadLoss(
      { weight: head.weight, softcap: head.softcap, teacherWeight: teacherHead(tuned) },
      terms,
      { positions: regularizers.positions as Positions, chunkBytes },
    );
    this.#layers = [...new Set(terms.flatMap(({ hiddenStates = [] }) => hiddenStates))];
    const [vocabulary, channels] = head.weight.shape as [number, number];
    this.mostEntropy = Math.log(vocabulary);
    const { temperature } = this.#loss;
    const about = {
      model: model.nameOrPath,
      dtype: model.dtype,
      channels,
      vocabulary,
      temperature,
    };
    this.#cache =
      teacherCache === undefined ? null : new TeacherCache(teacherCache, about, model.device);
    this.recorded = {
      prepare: (pass) => this.#prepare(pass),
      valuesOf: (results, micro) => this.#valuesOf(results, micro),
    };
  }

  async teach(micro: MicroBatch<B>): Promise<Teacher> {
    const teacher = this.#cache
      ? { summary: await this.#summary(this.#cache, micro) }
      : { hidden: teacherStates(this.tuned, micro.batch, rowsOf(micro).rows) };
    await yieldToEventLoop();
    return teacher;
  }

  forget(teacher: Teacher): void {
    for (const tensor of 'hidden' in teacher ? [teacher.hidden] : Object.values(teacher.summary)) {
      tensor.dispose();
    }
  }

  async entropies(teacher: Teacher, micro: MicroBatch<B>): Promise<ArrayLike<number>> {
    const selected = rowsOf(micro);
    if ('summary' in teacher) {
      const { regularized } = selected;
      const values = Array.from((await teacher.summary.entropy.data()) as Float64Array);
      return regularized === null ? values : values.filter((_, i) => regularized[i] === 1);
    }
    const rows = this.kind.rowsOf(micro.batch);
    const measured = scope(() => this.#loss.teacherEntropyRows(teacher.hidden, rows, selected));
    if (measured === null) return [];
    const values = (await measured.data()) as Float64Array;
    measured.dispose();
    return values.filter((_, i) => i % kRowColumns === kEntropyColumn);
  }

  forward({ batch, selected }: MicroBatch<B>): StudentOutputs {
    const { model } = this.tuned;
    const rows = (selected as SelectedRows).rows;
    if (this.#layers.length === 0) {
      return { outputs: model.forward(batch as never, { rows }), hiddenStates: new Map() };
    }
    const { hidden, hiddenStates } = model.forwardWithHiddenStates(batch as never, {
      layers: this.#layers,
      rows,
    });
    return { outputs: hidden, hiddenStates };
  }

  compute({ micro, student, teacher, weights, totals, at }: LossPass<B, Teacher>): MicroBatchLoss {
    return this.#loss.compute({
      hidden: student.outputs,
      ...partsOf(teacher),
      batch: this.kind.rowsOf(micro.batch),
      source: micro.batch,
      selected: rowsOf(micro),
      ...{ weights, window: totals, at },
      hiddenStates: student.hiddenStates,
    });
  }

  dispose(): void {
    this.#loss.dispose();
    this.#cache?.close();
  }

  /** From the cache, or into it. The first epoch reads the same numbers as the later ones. */
  async #summary(cache: TeacherCache, micro: MicroBatch<B>): Promise<TeacherSummary> {
    const selected = rowsOf(micro);
    const sequences = this.kind.sequencesOf(micro.batch);
    const found = cache.take(sequences, selected);
    if (found !== null) return found;
    const hidden = teacherStates(this.tuned, micro.batch, selected.rows);
    const made = withPhase('teacher', () => scope(() => this.#loss.summarize(hidden, selected)));
    hidden.dispose();
    await cache.put(sequences, selected, made);
    return made;
  }

  #prepare({
    micro,
    teacher,
    weights,
    totals,
  }: Omit<LossPass<B, Teacher>, 'student'>): RecordedPass {
    const { model } = this.tuned;
    const selected = rowsOf(micro);
    // The number of rows that are the same differs from batch to batch, and graphs are of one shape.
    const prepared = model.prepare(micro.batch as never, {
      rows: selected.rows,
      sharePrefixes: false,
    });
    const { length, ...tensors } = prepared;
    const { factors, ...inputs } = this.#loss.prepare(
      selected,
      { weights, window: totals },
      model.device,
    );
    const gradients = this.#loss.gradientsOf(weights);
    const { teacherHidden = null, teacher: summary = null } = partsOf(teacher);
    return {
      key: `${length} ${gradients}`,
      inputs: {
        ...tensors,
        ...inputs,
        ...withPrefix(kFactor, factors),
        teacherHidden: teacherHidden?.detach() ?? null,
        mean: summary?.mean.detach() ?? null,
        entropy: summary?.entropy.detach() ?? null,
      },
      run: (now) => this.#run(now, { length, gradients }),
    };
  }

  #run(
    now: Named,
    { length, gradients }: { length: number; gradients: readonly string[] },
  ): ReturnType<RecordedPass['run']> {
    const model = { ...now, length } as unknown as ModelInputs;
    const summary = now.mean && now.entropy ? { mean: now.mean, entropy: now.entropy } : null;
    const teacher =
      this.#loss.readsTeacher && summary === null
        ? (now.teacherHidden ??
          this.tuned.withTeacher((base) => noGrad(() => base.forwardPrepared(model))))
        : null;
    const hidden = this.tuned.model.forwardPrepared(model);
    const inputs = { ...now, factors: withoutPrefix(kFactor, now) } as unknown as LossInputs;
    const { loss, sums, means } = this.#loss.computePrepared({
      ...{ hidden, teacher, summary, inputs, gradients },
    });
    return { loss, results: { sums: sums.detach(), ...withPrefix(kMean, means) } };
  }

  #valuesOf(results: Named, micro: MicroBatch<B>): MicroBatchLoss {
    const means = withoutPrefix(kMean, results);
    const values = this.#loss.valuesOf({ sums: results.sums as Tensor, means });
    return { loss: null, values, counts: micro.counts };
  }
}

/** Columns of the rows of teacherEntropyRows. */
const kRowColumns = 3;
const kEntropyColumn = 2;
/** Prefixes of the names of a graph's tensors. */
const kFactor = 'factor:';
const kMean = 'mean:';

function rowsOf({ selected }: MicroBatch): SelectedRows {
  return selected as SelectedRows;
}

function partsOf(teacher: Teacher | null): {
  teacherHidden?: Tensor;
  teacher?: TeacherSummary;
} {
  if (teacher === null) return {};
  return 'hidden' in teacher ? { teacherHidden: teacher.hidden } : { teacher: teacher.summary };
}

function withPrefix(
  prefix: string,
  tensors: Readonly<Record<string, Tensor>>,
): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(tensors).map(([key, value]) => [prefix + key, value]));
}

function withoutPrefix(prefix: string, tensors: Named): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(tensors)
      .filter(([key, value]) => key.startsWith(prefix) && value !== null)
      .map(([key, value]) => [key.slice(prefix.length), value as Tensor]),
  );
}

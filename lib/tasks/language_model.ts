/**
 * The part that causal language models and encoder-decoders share: a head over the vocabulary that is a single matrix, rows
 * that each predict one id, and the terms of {@link HeadLoss} on the rows that some term uses.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { Batch } from '../data/collate.ts';
import {
  type Positions,
  type RowsOfBatch,
  type SelectedRows,
  selectRows,
} from '../data/select_rows.ts';
import { evaluate } from '../eval/evaluate.ts';
import type { NamedTensors } from '../graph.ts';
import { EffectiveRank } from '../losses/effective_rank.ts';
import { HeadLoss, type LossInputs, type TeacherPart } from '../losses/head_loss.ts';
import type { ComputedLoss, StepOfRun, Term } from '../losses/term.ts';
import { kLanguageModelTerms } from '../losses/terms/list.ts';
import type { CausalLM, ForwardOptions, Head, Model, Seq2SeqLM } from '../models/index.ts';
import type { ModelInputs } from '../models/model.ts';
import { kHeadTerm, kHeadTermCount } from '../ops/head_terms.ts';
import { choice } from '../options/kinds.ts';
import { type Int8Products, withInt8Products, withPhase, yieldToEventLoop } from '../runtime.ts';
import { DTYPE_BYTES, noGrad, scope, type Tensor } from '../tensor.ts';
import type {
  Inputs,
  LossMemory,
  LossSettings,
  MicroBatch,
  Objective,
  Outputs,
  PassProducts,
  StepOfWindow,
  Task,
  TaskMetrics,
  TaskName,
} from './task.ts';
import { type CachedSequence, TeacherCache } from './teacher_cache.ts';
import { drawnSequences, partRows, takeSequences } from './teacher_part.ts';

/** A model with a head over its vocabulary; B is the type of the batches that its forward pass takes. */
export interface HeadModel<B> extends Model {
  readonly head: Head;
  forward(batch: B & Parameters<Model['forward']>[0], options?: ForwardOptions): Tensor;
}

/** The rows of a batch that predict ids; for an encoder-decoder, the rows of its decoder. */
export type PredictingRows = RowsOfBatch;

/** Properties in which the kinds of language models differ. */
export interface LanguageModelKind<B> {
  rowsOf(batch: B): PredictingRows;
  /** The number of tokens in a batch, without padding. */
  tokensOf(batch: B): number;
  /** The sequences of a batch, in the form by which the teacher cache identifies them. */
  sequencesOf(batch: B): CachedSequence[];
  /** Some of the sequences of a batch, as a batch. */
  take(batch: B, sequences: readonly number[]): B;
}

/** The kind of causal language models: each row of a segment predicts the next id. */
export const SEGMENT_KIND: LanguageModelKind<Batch> = {
  rowsOf: (batch) => batch,
  tokensOf: realRows,
  sequencesOf: ({ inputIds, positions, cuSeqlens, lengths }) =>
    Array.from({ length: cuSeqlens.length - 1 }, (_, b) => {
      const [begin, end] = [cuSeqlens[b] as number, cuSeqlens[b + 1] as number];
      const real = lengths ? begin + (lengths[b] as number) : end;
      const ids = inputIds.subarray(begin, real);
      return { ids, positions: positions.subarray(begin, real), begin, end };
    }),
  take: takeSequences,
};

/** Options of language models, in addition to those of their loss terms. */
export const languageModelOptions = {
  /** Rows that are regularized; default `supervised`. */
  positions: choice({
    choices: ['supervised', 'non_padding', 'label_aligned'],
    default: 'supervised',
    help: 'rows that are regularized',
  }),
};

/** The metrics of a language model: only the loss, and the best step is not kept unless the caller asks for it. */
const kMetrics: TaskMetrics = {
  names: ['loss'],
  defaultMetric: null,
  subject: 'a language model',
};

/** A batch with the selection of its rows and their counts. */
function selectOf<B>(
  data: B,
  kind: LanguageModelKind<B>,
  positions: Positions,
): Omit<MicroBatch<B>, 'index'> {
  const rows = selectRows(kind.rowsOf(data), positions);
  const { supervised, regularizedRows } = rows;
  const counts = { tokens: kind.tokensOf(data), supervised, regularized: regularizedRows.length };
  return { data, rows, counts };
}

/** The number of rows of an encoder's or decoder's part of a batch, without padding. */
export function realRows({
  inputIds,
  lengths,
}: Pick<Batch, 'inputIds'> & { readonly lengths?: Int32Array | undefined }): number {
  return lengths ? lengths.reduce((sum, length) => sum + length, 0) : inputIds.length;
}

/**
 * The weight of the teacher's head where it differs from the student's, that is, where the head is trained or saved with the
 * adapter; else null.
 */
export function teacherHead<B>(tuned: TunedModel<HeadModel<B>>): Tensor | null {
  if (!tuned.hasTeacher) return null;
  const { weight } = tuned.withTeacher((teacher) => teacher.head);
  return weight === tuned.model.head.weight ? null : weight;
}

/**
 * The reason why the teacher cannot be cached with this model's head; null if it can. The cache keeps the mean of the head's rows under the
 * teacher's distribution, which is sufficient only for a fixed linear head.
 */
export function headObstacle({
  model,
  trainsHead,
}: Pick<TunedModel<Model & { readonly head: Head }>, 'model' | 'trainsHead'>): string | null {
  if (trainsHead) return 'the head is trained, but must be frozen';
  if (model.head.softcap > 0) {
    return `the logits of this ${model.modelType} model are soft-capped, but must be linear`;
  }
  return null;
}

/** The teacher's hidden states, (N,C), or (M,C) where M rows are requested; with the products that are computed in int8. */
export function teacherStates<B>(
  tuned: TunedModel<HeadModel<B>>,
  batch: B,
  { rows, int8 }: { rows?: Int32Array | undefined; int8?: Int8Products | undefined },
): Tensor {
  return withPhase('teacher', () =>
    withInt8Products(int8, () =>
      tuned.withTeacher((model) => noGrad(() => model.forward(batch as never, { rows }))),
    ),
  );
}

/** Makes the task of a kind of language model, given the properties of that kind. */
export function languageModelTask<M extends HeadModel<B> & (CausalLM | Seq2SeqLM), B>(
  name: TaskName,
  kind: LanguageModelKind<B>,
  own: Pick<Task<M, B>, 'supports' | 'graphObstacle' | 'cacheObstacle'>,
): Task<M, B> {
  return {
    ...own,
    name,
    terms: kLanguageModelTerms,
    options: languageModelOptions,
    select: (batch, { positions }) => selectOf(batch, kind, positions as Positions),
    objective: (tuned, settings) => new LanguageModelObjective(tuned, kind, settings),
    evaluate: (tuned, batches, options) => evaluate<M>(tuned, batches as never, options),
    evaluationBytes: ({ head }) => EffectiveRank.bytes(head.weight),
    metrics: () => kMetrics,
    check: () => {},
    lossObstacle: null,
    teacherObstacle: null,
  };
}

/** The inputs of a language model's pass. */
interface LanguageModelInputs<B> extends Inputs<B> {
  /** Rows of the longest segment, where the model's inputs are among the tensors, for a graph; else null. */
  readonly length: number | null;
  /** The rows that have a teacher, where it is not all. */
  readonly part: TeacherPart | null;
}

/** The objective of a language model, made once for each run. */
export class LanguageModelObjective<B> implements Objective<B, LanguageModelInputs<B>> {
  readonly terms: readonly Term[];
  readonly maxEntropy: number;
  readonly memory: LossMemory;
  readonly #loss: HeadLoss;
  readonly #cache: TeacherCache | null;
  readonly #layers: readonly number[];
  readonly #fraction: number;
  readonly #positions: Positions;
  readonly #seed: number;
  readonly #int8: PassProducts;
  readonly #graphs: boolean;

  constructor(
    private readonly tuned: TunedModel<HeadModel<B>>,
    private readonly kind: LanguageModelKind<B>,
    {
      terms,
      regularizers,
      chunkBytes = 0,
      seed = 0,
      teacherCache,
      teacherIdentity = '',
      int8 = {},
      graphs = false,
    }: LossSettings,
  ) {
    const { model } = tuned;
    const { head } = model;
    this.terms = terms;
    this.#positions = regularizers.positions as Positions;
    this.#fraction = regularizers.teacherFraction as number;
    this.#seed = seed;
    this.#int8 = int8;
    this.#graphs = graphs;
    this.#loss = new HeadLoss(
      { weight: head.weight, softcap: head.softcap, teacherWeight: teacherHead(tuned) },
      terms,
      { positions: this.#positions, chunkBytes },
    );
    this.#layers = [...new Set(terms.flatMap(({ hiddenStates = [] }) => hiddenStates))];
    const [vocabulary, channels] = head.weight.shape as [number, number];
    this.maxEntropy = Math.log(vocabulary);
    const { temperature } = this.#loss;
    const cacheKind = {
      ...{ dtype: model.dtype, channels, vocabulary, temperature },
      model: teacherIdentity,
      ...(int8.teacher?.forward === true && { products: 'int8' as const }),
    };
    this.#cache =
      teacherCache === undefined ? null : new TeacherCache(teacherCache, cacheKind, model.device);
    this.memory = {
      probe: (rows) => this.#loss.probe(rows),
      bytes: (rows, { microBatches = 1, cachesTeacher = false } = {}) => {
        const { kept, working } = this.#loss.svdBytes(rows);
        const states = DTYPE_BYTES[model.dtype] * channels * rows;
        // Where a schedule reads the teacher's entropy, its outputs of a whole step are there before the step begins.
        const waits = terms.some(({ readsTeacherEntropy }) => readsTeacherEntropy);
        const waiting = waits ? (microBatches - 1) * states : 0;
        const copies = cachesTeacher ? TeacherCache.bytes(rows, cacheKind) : 0;
        return { kept, working: working + waiting + copies };
      },
    };
  }

  skips({ rows }: MicroBatch<B>): boolean {
    return rows?.rows.length === 0;
  }

  async teacher(batch: MicroBatch<B>, { step }: StepOfRun): Promise<NamedTensors> {
    if (!this.#loss.readsTeacher) return {};
    // A graph has the teacher's pass in itself, unless the outputs are kept in a file or a weight depends on them.
    const waits = this.terms.some(({ readsTeacherEntropy }) => readsTeacherEntropy);
    if (this.#graphs && this.#cache === null && !waits) return {};
    const { chosen } = this.#partOf(batch, step);
    const outputs = chosen === null ? {} : await this.#outputs(chosen);
    await yieldToEventLoop();
    return outputs;
  }

  async entropies(
    { states, mean, entropy }: NamedTensors,
    { data, rows }: MicroBatch<B>,
  ): Promise<ArrayLike<number>> {
    const selected = rows as SelectedRows;
    if (mean && entropy) {
      const { regularized } = selected;
      const values = Array.from((await entropy.data()) as Float64Array);
      return regularized === null ? values : values.filter((_, i) => regularized[i] === 1);
    }
    if (!states) return [];
    const measured = scope(() =>
      this.#loss.teacherEntropyRows(states, this.kind.rowsOf(data), selected),
    );
    if (measured === null) return [];
    const values = (await measured.data()) as Float64Array;
    measured.dispose();
    return values.filter((_, i) => i % kHeadTermCount === kHeadTerm.entropy);
  }

  prepare(batch: MicroBatch<B>, step: StepOfWindow, teacher: NamedTensors): LanguageModelInputs<B> {
    const { model } = this.tuned;
    const selected = batch.rows as SelectedRows;
    const { weights, totals: window } = step;
    // Sequences do not share the rows of common prefixes in a graph: the number of shared rows differs from batch to batch, and a graph has
    // fixed shapes.
    const { length, ...inputs } = this.#graphs
      ? model.prepare(batch.data as never, { rows: selected.rows, sharePrefixes: false })
      : { length: null };
    const { factors, ...loss } = this.#loss.prepare(selected, { weights, window }, model.device);
    return {
      key: `${length} ${this.#loss.gradientsOf(weights)}`,
      tensors: {
        ...inputs,
        ...withPrefix(kTeacher, teacher),
        ...loss,
        ...withPrefix(kFactor, factors),
      },
      ...{ batch, step, length, part: this.#partOf(batch, step.step).part },
    };
  }

  forward({ batch, tensors, length }: LanguageModelInputs<B>): Outputs {
    const { model } = this.tuned;
    if (length === null) {
      const { student, hiddenStates } = withInt8Products(this.#int8.student, () =>
        this.#student(batch),
      );
      return { student, hiddenStates, teacher: withoutPrefix(kTeacher, tensors) };
    }
    const inputs = { ...tensors, length } as unknown as ModelInputs;
    const given = withoutPrefix(kTeacher, tensors);
    const runs = this.#loss.readsTeacher && Object.keys(given).length === 0;
    const teacher = runs
      ? { states: this.tuned.withTeacher((base) => noGrad(() => base.forwardPrepared(inputs))) }
      : given;
    return { student: model.forwardPrepared(inputs), hiddenStates: new Map(), teacher };
  }

  losses(
    { batch, step, tensors, part }: LanguageModelInputs<B>,
    { student, hiddenStates, teacher }: Outputs,
  ): ComputedLoss {
    const { states = null, mean, entropy } = teacher;
    return this.#loss.compute({
      hidden: student,
      teacher: mean && entropy ? { mean, entropy } : states,
      batch: this.kind.rowsOf(batch.data),
      source: batch.data,
      selected: batch.rows as SelectedRows,
      ...{ part, weights: step.weights, window: step.totals, at: step, hiddenStates },
      prepared: { ...tensors, factors: withoutPrefix(kFactor, tensors) } as unknown as LossInputs,
    });
  }

  dispose(): void {
    this.#loss.dispose();
    this.#cache?.close();
  }

  #student({ data, rows: selected }: MicroBatch<B>): Omit<Outputs, 'teacher'> {
    const { model } = this.tuned;
    const { rows } = selected as SelectedRows;
    if (this.#layers.length === 0) {
      return { student: model.forward(data as never, { rows }), hiddenStates: new Map() };
    }
    const options = { layers: this.#layers, rows };
    const { hidden, hiddenStates } = model.forwardWithHiddenStates(data as never, options);
    return { student: hidden, hiddenStates };
  }

  /** Draws the sequences on which the teacher runs: all of a micro-batch, some as a micro-batch of their own, or none (null). */
  #partOf(
    batch: MicroBatch<B>,
    step: number,
  ): { chosen: Omit<MicroBatch<B>, 'index'> | null; part: TeacherPart | null } {
    if (this.#fraction === 1) return { chosen: batch, part: null };
    const { cuSeqlens } = this.kind.rowsOf(batch.data);
    const draw = { step, microBatch: batch.index, seed: this.#seed };
    const sequences = drawnSequences(cuSeqlens.length - 1, this.#fraction, draw);
    const places = partRows(batch.rows as SelectedRows, cuSeqlens, sequences);
    const part = { ...places, factor: 1 / this.#fraction };
    if (places.rows.length === 0) return { chosen: null, part };
    const taken = this.kind.take(batch.data, sequences);
    return { chosen: selectOf(taken, this.kind, this.#positions), part };
  }

  /**
   * The teacher's hidden states of the selected rows; with a cache their summary, read from it or else computed and added to it. The first
   * epoch uses the summary as well, so that every epoch computes with the same numbers.
   */
  async #outputs({ data, rows }: Omit<MicroBatch<B>, 'index'>): Promise<NamedTensors> {
    const selected = rows as SelectedRows;
    const statesOf = () =>
      teacherStates(this.tuned, data, { rows: selected.rows, int8: this.#int8.teacher });
    if (this.#cache === null) return { states: statesOf() };
    const sequences = this.kind.sequencesOf(data);
    const found = this.#cache.get(sequences, selected);
    if (found !== null) return { ...found };
    const hidden = statesOf();
    const made = withPhase('teacher', () => scope(() => this.#loss.summarize(hidden, selected)));
    hidden.dispose();
    await this.#cache.add(sequences, selected, made);
    return { ...made };
  }
}

/** Prefixes in the names of a graph's tensors. */
const kFactor = 'factor:';
const kTeacher = 'teacher:';

function withPrefix(prefix: string, tensors: NamedTensors): Record<string, Tensor | null> {
  return Object.fromEntries(Object.entries(tensors).map(([key, value]) => [prefix + key, value]));
}

function withoutPrefix(prefix: string, tensors: NamedTensors): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(tensors)
      .filter(([key, value]) => key.startsWith(prefix) && value !== null)
      .map(([key, value]) => [key.slice(prefix.length), value as Tensor]),
  );
}

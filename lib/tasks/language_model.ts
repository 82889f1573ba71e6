/**
 * The part that causal language models and encoder-decoders share: a head over the vocabulary that is a single matrix, rows
 * that each predict one id, and the terms of {@link HeadLoss} on the rows that some term uses.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { Batch } from '../data/collate.ts';
import { evaluate } from '../eval/evaluate.ts';
import type { NamedTensors } from '../graph.ts';
import { EffectiveRank } from '../losses/fused.ts';
import { HeadLoss, type LossInputs, type TeacherPart } from '../losses/head_loss.ts';
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
import { kHeadTerm, kHeadTermCount } from '../ops/head_terms.ts';
import type { TeacherSummary } from '../ops/index.ts';
import { choice } from '../options/kinds.ts';
import { type Int8Products, withInt8Products, withPhase } from '../runtime.ts';
import { DTYPE_BYTES, noGrad, scope, Tensor } from '../tensor.ts';
import { yieldToEventLoop } from './event_loop.ts';
import type {
  LossMemory,
  LossPass,
  LossSettings,
  MicroBatch,
  MicroBatchOfRun,
  RecordedLoss,
  RecordedPass,
  StudentOutputs,
  Task,
  TaskLoss,
  TaskMetrics,
  TaskName,
} from './task.ts';
import { type CachedSequence, TeacherCache } from './teacher_cache.ts';
import { drawnSequences, partRows } from './teacher_part.ts';

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
function selectOf<B>(batch: B, kind: LanguageModelKind<B>, positions: Positions): MicroBatch<B> {
  const selected = selectRows(kind.rowsOf(batch), positions);
  const { supervised, regularizedRows } = selected;
  const counts = { tokens: kind.tokensOf(batch), supervised, regularized: regularizedRows.length };
  return { batch, selected, counts };
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
    loss: (tuned, settings) => new LanguageModelLoss(tuned, kind, settings),
    evaluate: (tuned, batches, options) => evaluate<M>(tuned, batches as never, options),
    evaluationBytes: ({ head }) => EffectiveRank.bytes(head.weight),
    metrics: () => kMetrics,
    check: () => {},
    lossObstacle: null,
    teacherObstacle: null,
  };
}

/**
 * The part of the teacher that a loss reads: its hidden states (M,C) of the selected rows, or a summary of its distribution.
 */
type TeacherOutputs = Tensor | TeacherSummary;

/** The teacher's outputs, with the part of the rows that have them where it is not all. */
interface Teacher {
  /** null: no row has a teacher. */
  readonly outputs: TeacherOutputs | null;
  readonly part: TeacherPart | null;
}

/** The loss of a language model, made once for each run. */
export class LanguageModelLoss<B> implements TaskLoss<B, Teacher> {
  readonly terms: readonly Term[];
  readonly maxEntropy: number;
  readonly recorded: RecordedLoss<B, Teacher>;
  readonly memory: LossMemory;
  readonly #loss: HeadLoss;
  readonly #cache: TeacherCache | null;
  readonly #layers: readonly number[];
  readonly #fraction: number;
  readonly #positions: Positions;
  readonly #seed: number;
  readonly #int8: Int8Products | undefined;

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
      teacherInt8,
    }: LossSettings,
  ) {
    const { model } = tuned;
    const { head } = model;
    this.terms = terms;
    this.#positions = regularizers.positions as Positions;
    this.#fraction = regularizers.teacherFraction as number;
    this.#seed = seed;
    this.#int8 = teacherInt8;
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
      ...(teacherInt8?.forward === true && { products: 'int8' as const }),
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
    this.recorded = {
      prepare: (pass) => this.#prepare(pass),
      valuesOf: (results, micro) => this.#valuesOf(results, micro),
    };
  }

  async runTeacher(micro: MicroBatch<B>, at: MicroBatchOfRun): Promise<Teacher> {
    const { chosen, part } = this.#partOf(micro, at);
    const outputs = chosen === null ? null : await this.#outputs(chosen);
    await yieldToEventLoop();
    return { outputs, part };
  }

  releaseTeacher({ outputs }: Teacher): void {
    const tensors = outputs instanceof Tensor ? [outputs] : Object.values(outputs ?? {});
    for (const tensor of tensors) tensor.dispose();
  }

  async entropies({ outputs }: Teacher, micro: MicroBatch<B>): Promise<ArrayLike<number>> {
    const selected = rowsOf(micro);
    if (outputs === null) return [];
    if (!(outputs instanceof Tensor)) {
      const { regularized } = selected;
      const values = Array.from((await outputs.entropy.data()) as Float64Array);
      return regularized === null ? values : values.filter((_, i) => regularized[i] === 1);
    }
    const rows = this.kind.rowsOf(micro.batch);
    const measured = scope(() => this.#loss.teacherEntropyRows(outputs, rows, selected));
    if (measured === null) return [];
    const values = (await measured.data()) as Float64Array;
    measured.dispose();
    return values.filter((_, i) => i % kHeadTermCount === kHeadTerm.entropy);
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
      ...{ teacher: teacher?.outputs ?? null, part: teacher?.part ?? null },
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

  /** Draws the sequences on which the teacher runs: all of a micro-batch, some as a micro-batch of their own, or none (null). */
  #partOf(
    micro: MicroBatch<B>,
    at: MicroBatchOfRun,
  ): { chosen: MicroBatch<B> | null; part: TeacherPart | null } {
    if (this.#fraction === 1) return { chosen: micro, part: null };
    const { cuSeqlens } = this.kind.rowsOf(micro.batch);
    const draw = { ...at, seed: this.#seed };
    const sequences = drawnSequences(cuSeqlens.length - 1, this.#fraction, draw);
    const places = partRows(rowsOf(micro), cuSeqlens, sequences);
    const part = { ...places, factor: 1 / this.#fraction };
    if (places.rows.length === 0) return { chosen: null, part };
    const batch = this.kind.take(micro.batch, sequences);
    return { chosen: selectOf(batch, this.kind, this.#positions), part };
  }

  async #outputs(micro: MicroBatch<B>): Promise<TeacherOutputs> {
    return this.#cache ? this.#summary(this.#cache, micro) : this.#teacherStates(micro);
  }

  #teacherStates(micro: MicroBatch<B>): Tensor {
    const { rows } = rowsOf(micro);
    return teacherStates(this.tuned, micro.batch, { rows, int8: this.#int8 });
  }

  /**
   * The teacher's summary of a micro-batch, read from the cache or else computed and added to it. The first epoch uses the
   * summary as well, so that every epoch computes with the same numbers.
   */
  async #summary(cache: TeacherCache, micro: MicroBatch<B>): Promise<TeacherSummary> {
    const selected = rowsOf(micro);
    const sequences = this.kind.sequencesOf(micro.batch);
    const found = cache.get(sequences, selected);
    if (found !== null) return found;
    const hidden = this.#teacherStates(micro);
    const made = withPhase('teacher', () => scope(() => this.#loss.summarize(hidden, selected)));
    hidden.dispose();
    await cache.add(sequences, selected, made);
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
    // Sequences do not share the rows of common prefixes here: the number of shared rows differs from batch to batch, and a
    // graph has fixed shapes.
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
    const outputs = teacher?.outputs ?? null;
    const hidden = outputs instanceof Tensor ? outputs : null;
    const summary = outputs instanceof Tensor ? null : outputs;
    return {
      key: `${length} ${gradients}`,
      inputs: {
        ...tensors,
        ...inputs,
        ...withPrefix(kFactor, factors),
        teacherHidden: hidden?.detach() ?? null,
        mean: summary?.mean.detach() ?? null,
        entropy: summary?.entropy.detach() ?? null,
      },
      run: (now) => this.#run(now, { length, gradients }),
    };
  }

  #run(
    now: NamedTensors,
    { length, gradients }: { length: number; gradients: readonly string[] },
  ): ReturnType<RecordedPass['run']> {
    const model = { ...now, length } as unknown as ModelInputs;
    const teacher = this.#loss.readsTeacher ? this.#teacherOf(now, model) : null;
    const hidden = this.tuned.model.forwardPrepared(model);
    const inputs = { ...now, factors: withoutPrefix(kFactor, now) } as unknown as LossInputs;
    const { loss, sums, means } = this.#loss.computePrepared({
      ...{ hidden, teacher, inputs, gradients },
    });
    return { loss, results: { sums: sums.detach(), ...withPrefix(kMean, means) } };
  }

  /** The teacher of a prepared pass: the one that was given, or the model itself without its adapter. */
  #teacherOf({ mean, entropy, teacherHidden }: NamedTensors, model: ModelInputs): TeacherOutputs {
    if (mean && entropy) return { mean, entropy };
    if (teacherHidden) return teacherHidden;
    return this.tuned.withTeacher((base) => noGrad(() => base.forwardPrepared(model)));
  }

  #valuesOf(results: NamedTensors, micro: MicroBatch<B>): MicroBatchLoss {
    const means = withoutPrefix(kMean, results);
    const values = this.#loss.valuesOf({ sums: results.sums as Tensor, means });
    return { loss: null, values, counts: micro.counts };
  }
}

/** Prefixes in the names of a graph's tensors. */
const kFactor = 'factor:';
const kMean = 'mean:';

function rowsOf({ selected }: MicroBatch): SelectedRows {
  return selected as SelectedRows;
}

function withPrefix(
  prefix: string,
  tensors: Readonly<Record<string, Tensor>>,
): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(tensors).map(([key, value]) => [prefix + key, value]));
}

function withoutPrefix(prefix: string, tensors: NamedTensors): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(tensors)
      .filter(([key, value]) => key.startsWith(prefix) && value !== null)
      .map(([key, value]) => [key.slice(prefix.length), value as Tensor]),
  );
}

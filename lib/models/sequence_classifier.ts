/**
 * Base class of the models with a classification or regression head: one row of outputs for each sequence of a batch.
 * D is the number of labels.
 */
import { ArgumentError, FormatError } from '../errors.ts';
import { indexSelect } from '../ops/index.ts';
import { scope, type Tensor, tensor } from '../tensor.ts';
import type { ModelBatch } from './batch.ts';
import { type LayerStates, Model, type ModelOrigin } from './model.ts';

/** In transformers' words. Outputs are logits of one class of several, of each label apart, or plain values. */
export type ProblemType =
  | 'single_label_classification'
  | 'multi_label_classification'
  | 'regression';

const kProblemTypes: readonly ProblemType[] = [
  'single_label_classification',
  'multi_label_classification',
  'regression',
];

/** The meaning of a head's outputs. */
export interface Labels {
  readonly numLabels: number;
  readonly problemType: ProblemType;
}

/** Where the head came from. */
export interface HeadOrigin extends Labels {
  /** Tensors that the checkpoint does not hold and that were drawn anew: they need training. */
  readonly newlyInitialized: readonly string[];
  /** By id; left out or null: they have none. */
  readonly labelNames?: readonly string[] | null;
}

/** A model with a classification or regression head; see the head of the file. */
export abstract class SequenceClassifier extends Model implements HeadOrigin {
  readonly numLabels: number;
  readonly problemType: ProblemType;
  readonly newlyInitialized: readonly string[];
  /**
   * Names of the outputs by id, from the checkpoint that the head comes from, or from the caller; null where neither names
   * them. Labelled data is made with these (`labelNames: model.labelNames`), so that its ids are the head's.
   */
  readonly labelNames: readonly string[] | null;

  constructor(origin: ModelOrigin, head: HeadOrigin) {
    super(origin);
    this.numLabels = head.numLabels;
    this.problemType = head.problemType;
    this.newlyInitialized = head.newlyInitialized;
    this.labelNames = head.labelNames ?? null;
  }

  get taskType(): 'SEQ_CLS' {
    return 'SEQ_CLS';
  }

  /** The head on one row of hidden states a sequence: (B,C) -> (B,D) */
  protected abstract classify(rows: Tensor): Tensor;

  /** The row of each sequence that the head reads: the first, which encoders keep for this. */
  protected headRows({ cuSeqlens, lengths }: ModelBatch): Int32Array {
    return refuseEmpty(cuSeqlens, lengths).slice(0, -1);
  }

  /** The rows of hidden states that the head reads, one a sequence: hidden (N,C) -> (B,C) */
  headInputs(hidden: Tensor, batch: ModelBatch): Tensor {
    return indexSelect(hidden, tensor(this.headRows(batch), { device: hidden.device }));
  }

  /** headInputs(forward(batch), batch): (B,C). Behind its attention the last layer runs on those rows alone. */
  headInputsOf(batch: ModelBatch): Tensor {
    return this.forward(batch, { rows: this.headRows(batch) });
  }

  /** logits(forward(batch), batch) by way of headInputsOf(): (B,D). */
  outputs(batch: ModelBatch): Tensor {
    return scope(() => this.classify(this.headInputsOf(batch)));
  }

  /**
   * outputs(), and the outputs of chosen layers on the way, see {@link Model.forwardWithHiddenStates}: the caller's to dispose.
   */
  outputsWithHiddenStates(
    batch: ModelBatch,
    layers: readonly number[],
  ): { outputs: Tensor; hiddenStates: LayerStates['hiddenStates'] } {
    const rows = this.headRows(batch);
    const { hidden, hiddenStates } = this.forwardWithHiddenStates(batch, { layers, rows });
    try {
      return { outputs: scope(() => this.classify(hidden)), hiddenStates };
    } catch (error) {
      for (const state of hiddenStates.values()) state.dispose();
      throw error;
    } finally {
      hidden.dispose();
    }
  }

  /**
   * The head's outputs for each sequence of a batch.
   * @param hidden (N,C), what forward(batch) returned
   * @returns (B,D)
   * @throws ArgumentError for a sequence without tokens
   */
  logits(hidden: Tensor, batch: ModelBatch): Tensor {
    return scope(() => this.classify(this.headInputs(hidden, batch)));
  }

  /** `source` as the config.json of this model: its architecture, dtype and labels. */
  protected classifierJson(
    source: Readonly<Record<string, unknown>>,
    architecture: string,
  ): Record<string, unknown> {
    const json: Record<string, unknown> = {
      ...this.#withLabels(source),
      architectures: [architecture],
      dtype: this.dtypeName,
    };
    return Object.fromEntries(Object.entries(json).sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  /** `json` with the labels that this model has: those of a head it no longer has would be others' names. */
  #withLabels(json: Readonly<Record<string, unknown>>): Record<string, unknown> {
    const names = this.labelNames ?? Array.from({ length: this.numLabels }, (_, i) => madeUp(i));
    return {
      ...Object.fromEntries(Object.entries(json).filter(([key]) => !kReplaced.has(key))),
      id2label: { ...names },
      label2id: Object.fromEntries(names.map((name, i) => [name, i])),
      problem_type: this.problemType,
    };
  }
}

/** Keys of a source that the model's own labels and dtype stand for. */
const kReplaced = new Set(['num_labels', 'id2label', 'label2id', 'torch_dtype']);

/** transformers' name of a label that has none. */
const madeUp = (id: number): string => `LABEL_${id}`;

/** cuSeqlens, when every segment has a row. @throws ArgumentError */
export function refuseEmpty(cuSeqlens: Int32Array, lengths?: Int32Array): Int32Array {
  for (let b = 0; b + 1 < cuSeqlens.length; ++b) {
    const rows = lengths?.[b] ?? (cuSeqlens[b + 1] as number) - (cuSeqlens[b] as number);
    if (rows < 1) throw new ArgumentError(`logits: sequence ${b} of the batch has no tokens`);
  }
  return cuSeqlens;
}

/** The caller's options for a head's labels. */
export interface LabelOptions {
  /**
   * Outputs of the head. Left out: rows of the head in the checkpoint, else id2label of its configuration, else 2. A head
   * in the checkpoint must have this many.
   */
  numLabels?: number;
  /**
   * By id, for `labelNames` of the model and config.json of what is saved of it. Left out or null: the configuration's, if the
   * head is the checkpoint's.
   */
  labelNames?: readonly string[] | null;
  /** Left out: the configuration's word, else regression for one output and one class of several for more. */
  problemType?: ProblemType;
}

/**
 * Labels by the caller, the checkpoint's head and the configuration, in this order of trust.
 * @param head name and rows of the head's last weight, if the checkpoint holds one
 * @throws ArgumentError for options that contradict the head, FormatError for a configuration that makes no sense
 */
export function resolveLabels(
  json: Readonly<Record<string, unknown>>,
  { numLabels, labelNames = null, problemType }: LabelOptions,
  { path, head }: { path: string; head: { name: string; rows: number } | null },
): Labels & Required<Pick<HeadOrigin, 'labelNames'>> {
  if (numLabels !== undefined && (!Number.isInteger(numLabels) || numLabels < 1)) {
    throw new ArgumentError(`numLabels must be a whole number from 1 on, got ${numLabels}`);
  }
  const asked = numLabels ?? labelNames?.length;
  if (labelNames !== null && labelNames.length !== asked) {
    throw new ArgumentError(
      `numLabels is ${numLabels}, but ${labelNames.length} labelNames are given (${labelNames.join(', ')})`,
    );
  }
  if (asked !== undefined && head !== null && head.rows !== asked) {
    throw new ArgumentError(
      `${path}: the head in the checkpoint (${head.name}) has ${head.rows} labels, numLabels asks for ${asked}: ` +
        'leave numLabels out, or draw another head with newHead: true (--new-head)',
    );
  }
  const count = asked ?? head?.rows ?? labelCountOf(json) ?? 2;
  return {
    numLabels: count,
    problemType: resolveProblem(json, { problemType, count, path }),
    labelNames: labelNames ?? (head === null ? null : labelNamesOf(json, count)),
  };
}

/** Reads the names of so many labels from a configuration, by id; null where it has only those that transformers makes up. */
export function labelNamesOf(
  json: Readonly<Record<string, unknown>>,
  count: number,
): readonly string[] | null {
  if (labelCountOf(json) !== count) return null;
  const byId = (json.id2label ?? {}) as Readonly<Record<number, unknown>>;
  const names = Array.from({ length: count }, (_, id) => byId[id]);
  if (!names.every((name) => typeof name === 'string')) return null;
  return names.every((name, id) => name === madeUp(id)) ? null : names;
}

function resolveProblem(
  json: Readonly<Record<string, unknown>>,
  options: { problemType: ProblemType | undefined; count: number; path: string },
): ProblemType {
  const { problemType, count, path } = options;
  const stated = problemType ?? json.problem_type ?? null;
  if (stated === null) return count === 1 ? 'regression' : 'single_label_classification';
  if (!kProblemTypes.includes(stated as ProblemType)) {
    const message = `problem type ${JSON.stringify(stated)} is not one of ${kProblemTypes.join(', ')}`;
    if (problemType !== undefined) throw new ArgumentError(message);
    throw new FormatError(`${path}: ${message}`, { path });
  }
  if (stated === 'single_label_classification' && count === 1) {
    throw new ArgumentError(
      `${path}: one label cannot be classified: use problemType "regression", or more labels`,
    );
  }
  return stated as ProblemType;
}

function labelCountOf(json: Readonly<Record<string, unknown>>): number | undefined {
  const { id2label, num_labels } = json;
  if (id2label !== null && typeof id2label === 'object') return Object.keys(id2label).length;
  return typeof num_labels === 'number' ? num_labels : undefined;
}

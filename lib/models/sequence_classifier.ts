/**
 * Base class of the models with a classification or regression head: one row of outputs for each sequence of a batch.
 * D is the number of labels.
 */
import { ArgumentError } from '../errors.ts';
import { indexSelect } from '../ops/index.ts';
import { kMaxLabels } from '../options/labels.ts';
import { shown } from '../shown.ts';
import { scope, type Tensor, tensor } from '../tensor.ts';
import type { ModelBatch } from './batch.ts';
import { configError } from './config_keys.ts';
import { type LayerStates, Model, type ModelOrigin } from './model.ts';

/** transformers' problem_type: the outputs are logits of one class of several, logits of independent labels, or plain values. */
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

/** The labels of a head and the tensors of it that are new. */
export interface HeadOrigin extends Labels {
  /** Tensors that the checkpoint lacks and that were initialised at random, so they need training. */
  readonly newlyInitialized: readonly string[];
  /** Names of the labels by id; null or left out: they have none. */
  readonly labelNames?: readonly string[] | null;
}

/** A model with a classification or regression head, which gives one row of outputs for each sequence of a batch. */
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

  /** Applies the head to one row of hidden states for each sequence: (B,C) -> (B,D) */
  protected abstract classify(rows: Tensor): Tensor;

  /** The row of each sequence that the head reads: the first, whose token ([CLS]) encoders have for this. */
  protected headRows({ cuSeqlens, lengths }: ModelBatch): Int32Array {
    checkNotEmpty(cuSeqlens, lengths);
    return cuSeqlens.slice(0, -1);
  }

  /** The rows of hidden states that the head reads, one for each sequence: hidden (N,C) -> (B,C) */
  headInputs(hidden: Tensor, batch: ModelBatch): Tensor {
    return indexSelect(hidden, tensor(this.headRows(batch), { device: hidden.device }));
  }

  /** Computes headInputs(forward(batch), batch), (B,C). After its attention, the last layer computes those rows alone. */
  headInputsOf(batch: ModelBatch): Tensor {
    return this.forward(batch, { rows: this.headRows(batch) });
  }

  /** Computes logits(forward(batch), batch), (B,D), through headInputsOf(). */
  outputs(batch: ModelBatch): Tensor {
    return scope(() => this.classify(this.headInputsOf(batch)));
  }

  /**
   * Computes outputs() and returns the outputs of chosen layers with it, see {@link Model.forwardWithHiddenStates}. The caller
   * disposes of the tensors.
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
   * @param hidden (N,C), the result of forward(batch)
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

  /** `json` with this model's labels in place of those of the checkpoint, which may belong to another head. */
  #withLabels(json: Readonly<Record<string, unknown>>): Record<string, unknown> {
    const names =
      this.labelNames ?? Array.from({ length: this.numLabels }, (_, i) => defaultLabel(i));
    return {
      ...Object.fromEntries(Object.entries(json).filter(([key]) => !kReplacedKeys.has(key))),
      id2label: { ...names },
      label2id: Object.fromEntries(names.map((name, i) => [name, i])),
      problem_type: this.problemType,
    };
  }
}

/** Keys of config.json that the model's own labels and dtype replace. */
const kReplacedKeys = new Set(['num_labels', 'id2label', 'label2id', 'torch_dtype']);

/** The name that transformers gives to a label without one. */
const defaultLabel = (id: number): string => `LABEL_${id}`;

/** Checks that every segment has a row. @throws ArgumentError naming the segment without one */
export function checkNotEmpty(cuSeqlens: Int32Array, lengths?: Int32Array): void {
  for (let b = 0; b + 1 < cuSeqlens.length; ++b) {
    const rows = lengths?.[b] ?? (cuSeqlens[b + 1] as number) - (cuSeqlens[b] as number);
    if (rows < 1)
      throw new ArgumentError(`logits: sequence ${b} of the batch must have at least one token`);
  }
}

/** The caller's options for a head's labels. */
export interface LabelOptions {
  /**
   * Number of outputs of the head. Default: that of the head in the checkpoint, else of id2label in its configuration, else 2. A
   * head in the checkpoint must have this many.
   */
  numLabels?: number;
  /**
   * Names of the labels by id, for `labelNames` of the model and the config.json that is saved. Default, and null: those of the
   * configuration if the head is the checkpoint's.
   */
  labelNames?: readonly string[] | null;
  /** Default: the configuration's, else regression for one output and single-label classification for more. */
  problemType?: ProblemType;
}

/**
 * Determines the labels of a head from the caller's options, the head in the checkpoint and the configuration, in
 * this order of precedence.
 * @param head name and rows of the head's last weight, if the checkpoint holds one
 * @throws ArgumentError for options that contradict the head, FormatError for a configuration that makes no sense
 */
export function resolveLabels(
  json: Readonly<Record<string, unknown>>,
  { numLabels, labelNames = null, problemType }: LabelOptions,
  { path, head }: { path: string; head: { name: string; rows: number } | null },
): Labels & Required<Pick<HeadOrigin, 'labelNames'>> {
  const asked = numLabels ?? labelNames?.length;
  if (labelNames !== null && labelNames.length !== asked) {
    throw new ArgumentError(
      `labelNames must be as many as numLabels, ${numLabels}, got ${labelNames.length} (${labelNames.join(', ')})`,
    );
  }
  if (asked !== undefined && head !== null && head.rows !== asked) {
    throw new ArgumentError(
      `${path}: the head in the checkpoint (${head.name}) has ${head.rows} labels, numLabels asks for ${asked}; ` +
        'leave numLabels out, or draw another head with newHead: true (--new-head)',
    );
  }
  const count = asked ?? head?.rows ?? labelCountOf(json) ?? 2;
  if (!Number.isInteger(count) || count < 1 || count > kMaxLabels) {
    const message = `num_labels must be a whole number from 1 to ${kMaxLabels}, got ${shown(count)}`;
    throw asked === undefined ? configError(path, message) : new ArgumentError(message);
  }
  return {
    numLabels: count,
    problemType: resolveProblem(json, { problemType, count, path }),
    labelNames: labelNames ?? (head === null ? null : labelNamesOf(json, count)),
  };
}

/** Reads the names of so many labels from a configuration, by id; null where it has only transformers' default names. */
export function labelNamesOf(
  json: Readonly<Record<string, unknown>>,
  count: number,
): readonly string[] | null {
  if (labelCountOf(json) !== count) return null;
  const byId = (json.id2label ?? {}) as Readonly<Record<number, unknown>>;
  const names = Array.from({ length: count }, (_, id) => byId[id]);
  if (!names.every((name) => typeof name === 'string')) return null;
  return names.every((name, id) => name === defaultLabel(id)) ? null : names;
}

function resolveProblem(
  json: Readonly<Record<string, unknown>>,
  options: { problemType: ProblemType | undefined; count: number; path: string },
): ProblemType {
  const { problemType, count, path } = options;
  const stated = problemType ?? json.problem_type ?? null;
  if (stated === null) return count === 1 ? 'regression' : 'single_label_classification';
  if (!kProblemTypes.includes(stated as ProblemType)) {
    const message = `the problem type must be one of ${kProblemTypes.join(', ')}, got ${shown(stated)}`;
    if (problemType !== undefined) throw new ArgumentError(message);
    throw configError(path, message);
  }
  if (stated === 'single_label_classification' && count === 1) {
    throw new ArgumentError(
      `${path}: one label cannot be classified; use problemType "regression", or more labels`,
    );
  }
  return stated as ProblemType;
}

function labelCountOf(json: Readonly<Record<string, unknown>>): number | undefined {
  const { id2label, num_labels } = json;
  if (id2label !== null && typeof id2label === 'object') return Object.keys(id2label).length;
  return typeof num_labels === 'number' ? num_labels : undefined;
}

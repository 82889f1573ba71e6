// BA-LoRA's loss for classification and regression heads (arXiv 2408.04556) on one micro-batch of an accumulation window:
//   L = task + l1 CR + l2 DR + l3 SVDR
// Task and CR are means over examples and count with the micro-batch's share of the WINDOW's examples, so that 1x8 and 8x1
// agree exactly; DR and SVDR belong to the micro-batch's own matrix and differ by design.
import { ArgumentError } from '../errors.ts';
import { add, crossEntropy, mean, mul, reshape, square, stack, sub, zeros } from '../ops/index.ts';
import { noGrad, type Tensor, unscoped } from '../tensor.ts';
import type { TermValues, TermWeights } from './nlg.ts';
import {
  binaryCrossEntropy,
  clampSvdTopK,
  type NluVariant,
  nluConsistencyLoss,
  nluDiversityLoss,
  nluSvdLoss,
  type ProblemType,
} from './nlu_terms.ts';
import { rowsOf } from './plain.ts';

/** Options of {@link NluLoss}. */
export interface NluOptions {
  /** What the outputs mean, and with it the task's loss. Default 'single_label_classification'. */
  problemType?: ProblemType;
  /** Form of the consistency term. Default 'iclr'. */
  variant?: NluVariant;
  /** T of the consistency term. Default 2. */
  temperature?: number;
  /** k of the singular values, clamped to min(N, D) - 1. Default 5. */
  svdTopK?: number;
  /** Which regularizers are on; an off term is neither computed nor reported. Default all. */
  terms?: { consistency?: boolean; diversity?: boolean; svd?: boolean };
  /** Told once of each way in which a term is not what was asked for. Default: nobody. */
  onWarning?: (warning: NluWarning) => void;
}

/** Something about the loss that a user should know. */
export interface NluWarning {
  readonly code: 'nlu_svd_clamped' | 'nlu_terms_undefined' | 'nlu_single_example';
  readonly message: string;
}

/** What {@link NluLoss.compute} needs. */
export interface NluMicroBatch {
  /** Z (N, D), on the tape. */
  logits: Tensor;
  /** P (N, D); needed while consistency is on. */
  teacherLogits?: Tensor | null;
  /** (N) i32 class ids; (N, D), or (N) where D = 1, f32 for regression and several labels. */
  labels: Tensor;
  /** l1, l2, l3 at this step; 0 computes a term's value without its gradient. */
  weights: TermWeights;
  /** Examples of the whole accumulation window. Default N. */
  windowExamples?: number;
}

/** What {@link NluLoss.compute} gives. */
export interface NluMicroBatchLoss {
  /** Share of the step's loss, () on the tape. */
  loss: Tensor;
  /** (4): raw task, consistency, diversity and svd of the micro-batch; 0 where a term is off or undefined. */
  terms: Tensor;
  /** N. */
  examples: number;
}

/** The whole loss of a micro-batch of a classification or regression model. */
export class NluLoss {
  readonly options: Required<Omit<NluOptions, 'terms' | 'onWarning'>>;
  readonly terms: { consistency: boolean; diversity: boolean; svd: boolean };
  readonly #tell: (warning: NluWarning) => void;
  readonly #told = new Set<string>();

  constructor({ terms = {}, onWarning = () => {}, ...rest }: NluOptions = {}) {
    this.terms = { consistency: true, diversity: true, svd: true, ...terms };
    this.options = {
      problemType: 'single_label_classification',
      variant: 'iclr',
      temperature: 2,
      svdTopK: 5,
      ...rest,
    };
    this.#tell = onWarning;
    checkOptions(this.options);
  }

  /** Enqueues the loss of one micro-batch; nothing is read back. */
  compute(batch: NluMicroBatch): NluMicroBatchLoss {
    const { teacherLogits = null, labels, weights } = batch;
    const z = rowsOf('NluLoss', batch.logits);
    const [examples, outputs] = z.shape as [number, number];
    if (this.terms.consistency && !teacherLogits) {
      throw new ArgumentError('NluLoss: the consistency term needs teacherLogits');
    }
    this.#warn(examples, outputs);
    const { variant, temperature, problemType, svdTopK: k } = this.options;
    const task = nluTaskLoss(z, labels, problemType);
    const teacher = this.terms.consistency ? teacherLogits : null;
    const term = (weight: number, make: () => Tensor | null): Tensor | null =>
      weight === 0 ? noGrad(make) : make();
    const values = [
      task,
      teacher &&
        term(weights.consistency, () =>
          nluConsistencyLoss(z, teacher, { variant, temperature, problemType }),
        ),
      this.terms.diversity ? term(weights.diversity, () => nluDiversityLoss(z)) : null,
      this.terms.svd ? term(weights.svd, () => nluSvdLoss(z, { k })) : null,
    ];
    const factors = [1, weights.consistency, weights.diversity, weights.svd];
    const share = examples / (batch.windowExamples ?? examples);
    let loss = mul(task, share);
    values.forEach((value, i) => {
      const factor = (factors[i] as number) * share;
      if (i > 0 && value && factor !== 0) loss = add(loss, mul(value, factor));
    });
    const { device } = z;
    const terms = noGrad(() =>
      stack(values.map((value) => value?.detach() ?? zeros([], { dtype: z.dtype, device }))),
    );
    return { loss, terms, examples };
  }

  /** The terms' raw values over a window; null: switched off, or undefined for D outputs. */
  window(outputs: number): NluWindowTerms {
    const several = outputs > 1;
    const { consistency, diversity, svd } = this.terms;
    return new NluWindowTerms({
      consistency,
      diversity: diversity && several,
      svd: svd && several,
    });
  }

  #warn(examples: number, outputs: number): void {
    const { diversity, svd } = this.terms;
    const { svdTopK } = this.options;
    if (outputs === 1) {
      if (!diversity && !svd) return;
      const message =
        'the head has one output, so the diversity and singular-value terms are undefined: they are skipped';
      this.#once({ code: 'nlu_terms_undefined', message });
      return;
    }
    if (examples === 1 && (diversity || svd)) {
      const message =
        'a micro-batch of one example has no covariance and one singular value: the diversity and singular-value terms are skipped for it';
      this.#once({ code: 'nlu_single_example', message });
    }
    const used = clampSvdTopK(svdTopK, [examples, outputs]);
    if (svd && used > 0 && used < svdTopK) {
      const message =
        `svdTopK ${svdTopK} is clamped to ${used} = min(${examples} examples, ${outputs} outputs) - 1: ` +
        'with every singular value in the sum the term is the constant -1, without gradient';
      this.#once({ code: 'nlu_svd_clamped', message });
    }
  }

  #once(warning: NluWarning): void {
    if (this.#told.has(warning.code)) return;
    this.#told.add(warning.code);
    this.#tell(warning);
  }
}

/**
 * The task's own loss, a mean over the examples: cross-entropy, mean squared error, or binary cross-entropy.
 * @param logits Z (N, D)
 * @param labels as in {@link NluMicroBatch}
 */
export function nluTaskLoss(logits: Tensor, labels: Tensor, problemType: ProblemType): Tensor {
  const z = rowsOf('nluTaskLoss', logits);
  const [rows, outputs] = z.shape as [number, number];
  const classes = problemType === 'single_label_classification';
  const fits = labels.size === (classes ? rows : rows * outputs) && labels.shape[0] === rows;
  if (!fits || classes !== (labels.dtype === 'i32')) {
    const wanted = classes ? `(${rows}) i32` : `(${rows},${outputs}) of a float type`;
    throw new ArgumentError(
      `nluTaskLoss: labels of ${problemType} must be ${wanted}, got (${labels.shape.join(',')}) ${labels.dtype}`,
    );
  }
  if (classes) return crossEntropy(z, labels);
  const targets = reshape(labels.dtype === z.dtype ? labels : labels.to(z.dtype), z.shape);
  return problemType === 'regression'
    ? mean(square(sub(z, targets)))
    : binaryCrossEntropy(z, targets);
}

/** The terms over a window, from its micro-batches, each with its share of the examples. Read once, at the end. */
export class NluWindowTerms {
  #parts: { terms: Tensor; examples: number }[] = [];

  constructor(private readonly on: NluLoss['terms']) {}

  /** Counts a micro-batch in. */
  add({ terms, examples }: NluMicroBatchLoss): void {
    unscoped(() => this.#parts.push({ terms: terms.detach(), examples }));
  }

  /** Waits for the values, and frees what was kept. */
  async read(): Promise<TermValues> {
    const total = this.#parts.reduce((sum, { examples }) => sum + examples, 0);
    const sums = [0, 0, 0, 0];
    for (const { terms, examples } of this.#parts) {
      const values = (await terms.data()) as Float32Array;
      for (let i = 0; i < sums.length; i++) {
        sums[i] = (sums[i] as number) + ((values[i] as number) * examples) / total;
      }
      terms.dispose();
    }
    this.#parts = [];
    const [task, consistency, diversity, svd] = sums as [number, number, number, number];
    return {
      task,
      consistency: this.on.consistency ? consistency : null,
      diversity: this.on.diversity ? diversity : null,
      svd: this.on.svd ? svd : null,
    };
  }

  /** Frees what was kept without reading it. */
  dispose(): void {
    for (const { terms } of this.#parts) terms.dispose();
    this.#parts = [];
  }
}

function checkOptions({ problemType, variant, temperature, svdTopK }: NluLoss['options']): void {
  const choices = {
    problemType: [problemType, kProblemTypes],
    variant: [variant, kVariants],
  } as const;
  for (const [name, [value, allowed]] of Object.entries(choices)) {
    if ((allowed as readonly string[]).includes(value)) continue;
    throw new ArgumentError(
      `NluLoss: ${name} must be one of ${allowed.join(', ')}, got ${JSON.stringify(value)}`,
    );
  }
  if (!(temperature > 0)) {
    throw new ArgumentError(`NluLoss: temperature must be > 0, got ${temperature}`);
  }
  if (!(Number.isInteger(svdTopK) && svdTopK >= 1)) {
    throw new ArgumentError(`NluLoss: svdTopK must be a whole number >= 1, got ${svdTopK}`);
  }
}

/** The problem types, in the spelling of config.json. */
export const kProblemTypes = [
  'single_label_classification',
  'regression',
  'multi_label_classification',
] as const satisfies readonly ProblemType[];
/** Forms of the consistency term. */
export const kVariants = ['iclr', '2024'] as const satisfies readonly NluVariant[];

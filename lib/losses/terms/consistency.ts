/** The consistency term: keeps the outputs near those of the pre-trained model (BA-LoRA, arXiv 2408.04556). */
import { choice, number } from '../../options/kinds.ts';
import type { Check, ResolvedOf } from '../../options/option.ts';
import { is } from '../../options/requirements.ts';
import { nluConsistencyLoss } from '../nlu_terms.ts';
import { consistencyLoss, kGreatestTemperature } from '../plain.ts';
import {
  type AdaptiveOptions,
  adaptiveBounds,
  consistencySchedule,
  type Term,
  type TermDefinition,
} from '../term.ts';

const kAdaptive = is('consistencySchedule', 'adaptive');

const options = {
  /** Weight l1 (default 0; the `balora` preset sets .025, for a classifier .15). */
  consistencyWeight: number({
    least: 0,
    default: 0,
    help: 'weight l1 of the divergence from the pre-trained model',
  }),
  /** Distillation temperature T, up to 10^4 (default 2). */
  temperature: number({
    least: 0,
    above: true,
    most: kGreatestTemperature,
    default: 2,
    help: 'temperature T of the divergence',
  }),
  /** Schedule of the weight (default `cosine`). */
  consistencySchedule: choice({
    choices: ['constant', 'cosine', 'adaptive'],
    default: 'cosine',
    help: 'schedule of the consistency weight l1',
  }),
  /** l1 of the `adaptive` schedule where the teacher is uncertain. Default, and null: a tenth of `consistencyWeight`. */
  consistencyWeightMin: number({
    least: 0,
    default: null,
    help: 'l1 where the teacher is uncertain; default: a tenth of the weight',
    requires: [kAdaptive],
  }),
  /** l1 of the `adaptive` schedule where the teacher is certain. Default, and null: `consistencyWeight`. */
  consistencyWeightMax: number({
    least: 0,
    default: null,
    help: 'l1 where the teacher is certain; default: the weight',
    requires: [kAdaptive],
  }),
};

const part = {
  /**
   * Share of the sequences of a language model's micro-batch on which the teacher runs, above 0. They are drawn anew each time, and
   * their divergence counts 1/teacherFraction, so that the expected gradient stays the same: less time, more noise. Default 1.
   */
  teacherFraction: number({
    least: 0,
    above: true,
    most: 1,
    default: 1,
    help: "share of a micro-batch's sequences on which the teacher runs; their divergence counts for all",
    // Checkpoints from before this option do not have it.
    identity: (fraction: number) => (fraction === 1 ? undefined : fraction),
  }),
};
const languageModelOptions: typeof options & typeof part = { ...options, ...part };

const variant = {
  /** Form of the term (default `iclr`); see `nluConsistencyLoss`. */
  variant: choice({
    choices: ['iclr', '2024'],
    default: 'iclr',
    help: "form of a classifier's consistency term",
  }),
};
const classifierOptions: typeof options & typeof variant = { ...options, ...variant };

type Options = ResolvedOf<typeof options>;

const firstBound = (given: Options) =>
  (['consistencyWeightMin', 'consistencyWeightMax'] as const).find((key) => given[key] !== null);

const checks: readonly Check<Options>[] = [
  {
    // The other schedules would ignore the bounds.
    when: (given) =>
      firstBound(given) !== undefined &&
      (given.consistencySchedule !== 'adaptive' || given.consistencyWeight === 0),
    message: (given, name) =>
      `${name(firstBound(given) as string)} needs ${name('consistencySchedule')} adaptive and a ` +
      `${name('consistencyWeight')} > 0`,
  },
  {
    when: (given) => {
      const { min, max } = adaptiveBounds(limits(given));
      return firstBound(given) !== undefined && min > max;
    },
    message: (given, name) => {
      const { min, max } = adaptiveBounds(limits(given));
      return `${name('consistencyWeightMin')} (${min}) must not be above ${name('consistencyWeightMax')} (${max})`;
    },
  },
];

/** L_CR = T^2 mean KL(softmax(teacher/T) || softmax(student/T)) over the rows of the regularizers. */
export const consistency: TermDefinition<typeof languageModelOptions> = {
  key: 'consistency',
  options: languageModelOptions,
  checks: [
    ...checks,
    {
      when: (given) => given.teacherFraction < 1 && given.consistencySchedule === 'adaptive',
      message: (_, name) =>
        `${name('consistencySchedule')} adaptive reads the teacher on all sequences; leave ${name('teacherFraction')} out`,
    },
  ],
  create: (given) => ({
    ...common(given),
    value: ({ logits, teacherLogits }) =>
      consistencyLoss(logits(), teacherLogits(), { temperature: given.temperature }),
    fused: { pass: 'divergence', temperature: given.temperature },
  }),
};

/** The same for the outputs of a classification or regression head, see {@link nluConsistencyLoss}. */
export const classifierConsistency: TermDefinition<typeof classifierOptions> = {
  key: 'consistency',
  options: classifierOptions,
  checks,
  create: (given) => ({
    ...common(given),
    value: ({ logits, teacherLogits, problemType }) =>
      nluConsistencyLoss(logits(), teacherLogits(), {
        ...{ variant: given.variant, temperature: given.temperature },
        ...(problemType === null ? {} : { problemType }),
      }),
  }),
};

function common(
  given: Options,
): Pick<Term, 'key' | 'rows' | 'teacher' | 'weightAt' | 'readsTeacherEntropy'> {
  return {
    key: 'consistency',
    rows: 'regularized',
    teacher: true,
    readsTeacherEntropy: given.consistencySchedule === 'adaptive',
    weightAt: consistencySchedule(given.consistencySchedule, limits(given)),
  };
}

function limits(given: Options): AdaptiveOptions {
  const { consistencyWeight, consistencyWeightMin, consistencyWeightMax } = given;
  return { weight: consistencyWeight, min: consistencyWeightMin, max: consistencyWeightMax };
}

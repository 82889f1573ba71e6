/** The options of corruptions of training data, for studies of what a model inherits from faulty data. */
import { nameList, number, text, whole } from '../options/kinds.ts';
import { type Check, group, type ValuesOf } from '../options/option.ts';
import { given, needing } from '../options/requirements.ts';

/** Kinds of noise in a text: letters of a word, words that are missing, words of a span in another order. */
export const TEXT_NOISE_KINDS = ['typos', 'drop', 'shuffle'] as const;
/** Kind of noise in a text. */
export type TextNoiseKind = (typeof TEXT_NOISE_KINDS)[number];

/** The options of corruptions, each of which is off unless it is given. */
export const corruptionOptions = group('Corruptions of the training data (for studies)', {
  /** Share of the labels that are replaced by another label of the data, each alike likely. */
  labelNoise: number({
    least: 0,
    most: 1,
    help: 'share of the labels to replace by another one of the data',
    aliases: ['label-flips', 'noise-rate'],
  }),
  /** Number of rows of the largest other class for each row of the rare class, of which other rows are left out. */
  classImbalance: number({
    least: 1,
    help: 'rows of the largest class for each row of the rare one, whose other rows are left out',
    aliases: ['imbalance-ratio'],
  }),
  /** The class that becomes rare, as the data write it. Default: the smallest. */
  rareClass: text({
    placeholder: 'label',
    help: 'the class that becomes rare, as the data write it; default: the smallest',
  }),
  /** Share of the words to change, in all texts that the model reads. */
  textNoise: number({ least: 0, most: 1, help: 'share of the words to change' }),
  /** Kinds of changes of words. Default: all. */
  textNoiseKinds: nameList({
    help: `changes of words: ${TEXT_NOISE_KINDS.join(', ')}; default: all`,
  }),
  /** Share of the rows that come twice. */
  duplicateRows: number({ least: 0, most: 1, help: 'share of the rows that come twice' }),
  /** Seed of the corruptions. Default: the seed of the data's order. */
  corruptionSeed: whole({ least: 0, help: 'seed of the corruptions; default: that of the run' }),
});

/** Corruptions of training data. */
export type CorruptionOptions = ValuesOf<typeof corruptionOptions>;

/** Combinations that are refused. */
export const corruptionChecks: readonly Check<CorruptionOptions>[] = [
  {
    when: ({ textNoiseKinds = [] }) =>
      textNoiseKinds.some((kind) => !TEXT_NOISE_KINDS.includes(kind as TextNoiseKind)),
    message: (_, name) => `${name('textNoiseKinds')} must be among ${TEXT_NOISE_KINDS.join(', ')}`,
  },
  needing('rareClass', given('classImbalance'), ', which says how rare it becomes'),
  needing('textNoiseKinds', given('textNoise'), ', the share of words to change'),
  {
    when: ({ corruptionSeed, ...corruptions }) =>
      corruptionSeed !== undefined &&
      Object.values(corruptions).every((value) => value === undefined),
    message: (_, name) =>
      `${name('corruptionSeed')} needs a corruption, such as ${name('textNoise')}; leave it out`,
  },
];

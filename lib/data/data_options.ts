/** The options of micro-batches that functions and flags share. Their defaults stand here alone. */
import { onOff, whole } from '../options/kinds.ts';
import { defaultsOf, group } from '../options/option.ts';

/** Options of the lengths of examples. */
export const lengthOptions = group('Examples', {
  maxLength: whole({
    least: 2,
    default: 512,
    help: 'tokens of an example; longer ones are cut',
    aliases: ['max-seq-length', 'max-seq-len', 'cutoff-len', 'block-size', 'model-max-length'],
  }),
  maxSourceLength: whole({
    least: 2,
    default: 512,
    help: 'seq2seq-lm: tokens of a source; longer ones are cut',
  }),
  maxTargetLength: whole({
    least: 2,
    default: 128,
    help: 'seq2seq-lm: tokens of a target; longer ones are cut',
  }),
});

/** The option of the order of examples. */
export const shuffleOption = group('Examples', {
  shuffle: onOff({
    default: true,
    help: 'a new order of the examples in every epoch',
    helpOff: 'keep the order of the file',
  }),
});

/** The values of these options where a caller gives none. */
export const DATA_DEFAULTS = defaultsOf({ ...lengthOptions, ...shuffleOption });

/**
 * Numbers of examples in a micro-batch where the caller gives none. A function makes single ones, as PyTorch's DataLoader does; a
 * command has the number of transformers' per_device_train_batch_size.
 */
export const BATCH_SIZES = { library: 1, command: 8 } as const;

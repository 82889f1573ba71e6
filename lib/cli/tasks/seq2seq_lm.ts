/** The encoder-decoder task on the command line: the prompt is the source, the response the target. */
import { Seq2SeqBatches, type Seq2SeqBatchOptions } from '../../data/seq2seq_batches.ts';
import type { Seq2SeqExample } from '../../data/seq2seq_example.ts';
import { AutoModelForSeq2SeqLM, checkSeq2SeqLM, type Seq2SeqLM } from '../../models/index.ts';
import { seq2seqLm } from '../../tasks/seq2seq_lm.ts';
import { formatOptions, languageModelCli } from './language_model.ts';

export const seq2seqLmCli = languageModelCli<
  Seq2SeqLM,
  Omit<Seq2SeqBatchOptions, 'decoderStartTokenId'>,
  Seq2SeqExample
>({
  task: seq2seqLm,
  taskType: 'SEQ_2_SEQ_LM',
  ownOptions: [
    'dataFormat',
    'promptTemplate',
    'promptField',
    'responseField',
    'maxSourceLength',
    'maxTargetLength',
    'samplePrompts',
    'calibrationData',
  ],
  check: checkSeq2SeqLM,
  load: (folder, options) => AutoModelForSeq2SeqLM.fromPretrained(folder, options),
  shared: ({ maxSourceLength, maxTargetLength, ...settings }) => ({
    ...formatOptions(settings),
    ...{ maxSourceLength, maxTargetLength },
  }),
  training: () => ({}),
  batches: ({ rows, tokenizer, model: { decoderStartTokenId }, options }) =>
    Seq2SeqBatches.create(rows, tokenizer, { ...options, decoderStartTokenId }),
  shown: ({ source, target }) => ({
    ids: Int32Array.of(...source, ...target),
    supervised: Uint8Array.of(...source.map(() => 0), ...target.map(() => 1)),
  }),
});

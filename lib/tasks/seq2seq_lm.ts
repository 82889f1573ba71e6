/** The encoder-decoder task: the rows of the decoder predict the target, given the source. */
import type { Seq2SeqExamples } from '../data/seq2seq_example.ts';
import { Seq2SeqLM } from '../models/index.ts';
import {
  headObstacle,
  type LanguageModelKind,
  languageModelTask,
  realRows,
} from './language_model.ts';
import { takeSequences } from './teacher_part.ts';

/** Separates the source ids from the target ids where the teacher cache identifies a sequence; no id is negative. */
const kSeparator = -1;

const kind: LanguageModelKind<Seq2SeqExamples> = {
  // The decoder's inputs are already shifted right by one, so the label of a row is the target of the same row.
  rowsOf: ({ decoder }) => ({ ...decoder, labels: decoder.targets }),
  tokensOf: (batch) => realRows(batch) + realRows(batch.decoder),
  sequencesOf: ({ inputIds, cuSeqlens, decoder }) =>
    Array.from({ length: cuSeqlens.length - 1 }, (_, b) => {
      const source = inputIds.subarray(cuSeqlens[b], cuSeqlens[b + 1]);
      const [begin, end] = [decoder.cuSeqlens[b] as number, decoder.cuSeqlens[b + 1] as number];
      const target = decoder.inputIds.subarray(begin, end);
      return { ids: Int32Array.of(...source, kSeparator, ...target), begin, end };
    }),
  take: ({ decoder, ...encoder }, chosen) => ({
    ...takeSequences(encoder, chosen),
    decoder: takeSequences(decoder, chosen),
  }),
};

/** The task for `--task seq2seq-lm`. */
export const seq2seqLm = languageModelTask<Seq2SeqLM, Seq2SeqExamples>('seq2seq-lm', kind, {
  supports: (model) => model instanceof Seq2SeqLM,
  graphObstacle: 'encoder-decoders are not trained by graphs',
  cacheObstacle: ({ tuned }) => headObstacle(tuned),
});

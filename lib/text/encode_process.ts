/** The process that encodes long texts (long_texts.ts), by a tokenizer of the same parts. */
import { answerRequests } from '../io/side_process.ts';
import { Tokenizer } from './tokenizer.ts';
import type { EncodeRequest, TokenizerSetup } from './tokenizer_parts.ts';

await answerRequests<EncodeRequest>(async (setup) => {
  const tokenizer = Tokenizer.fromSetup(setup as TokenizerSetup);
  return async ({ text, parseSpecial }) =>
    Int32Array.from(tokenizer.encode(text, { parseSpecial, addSpecialTokens: false }));
});

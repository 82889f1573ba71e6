/** The files of a model's tokenizer, beside an export. */
import { TOKENIZER_FILES } from '../io/model_folder.ts';
import { copyCompanions, type Model } from '../models/index.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

/**
 * Writes the tokenizer's files with the chat template: those of the base's folder as they are, and where it has none (a GGUF file),
 * tokenizer.json and tokenizer_config.json of the tokenizer. A file that exists is not replaced.
 */
export async function writeTokenizer(
  model: Model,
  tokenizer: Tokenizer,
  folder: string,
): Promise<void> {
  await copyCompanions(model.folder, folder, TOKENIZER_FILES);
  await tokenizer.savePretrained(folder);
}

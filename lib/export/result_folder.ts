/** The files beside the result of a run: those of the tokenizer with the chat template, and beside an adapter a model card. */
import { join } from 'node:path';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { RESIDUAL_BASE } from '../adapters/peft_folder.ts';
import type { ExportForm, TunedModel } from '../adapters/tuned_model.ts';
import type { Model } from '../models/index.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { writeCard } from './model_card.ts';
import { writeTokenizer } from './tokenizer_files.ts';

/**
 * Completes the folder of an adapter or a model that a run has written.
 * @param folder the folder that the result was written into, whose run the card describes
 * @param tokenizer the model's tokenizer; null: it is not known, and its files are left out
 */
export async function completeResult(
  tuned: TunedModel<Model>,
  { folder, form, tokenizer }: { folder: string; form: ExportForm; tokenizer: Tokenizer | null },
): Promise<void> {
  if (tuned.kind === 'full') {
    await tokenizer?.savePretrained(folder);
    return;
  }
  // A base that was read from a GGUF file has no tokenizer files to copy.
  if (form === 'residual') await tokenizer?.savePretrained(join(folder, RESIDUAL_BASE));
  if (!(tuned instanceof AdapterModel)) return;
  if (tokenizer !== null) await writeTokenizer(tuned.model, tokenizer, folder);
  await writeCard(tuned, { folder, adapter: folder, merged: false });
}

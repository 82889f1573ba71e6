/** An adapter as a PEFT folder: its two files, the tokenizer's files with the chat template, and a model card. */
import { ADAPTER_CONFIG, ADAPTER_TENSORS } from '../adapters/peft_folder.ts';
import { LOSS_PLOT, MODEL_CARD, TOKENIZER_FILES } from '../io/model_folder.ts';
import { writeCard } from './model_card.ts';
import { fillFolder } from './output.ts';
import { defineAdapterTarget } from './target.ts';
import { writeTokenizer } from './tokenizer_files.ts';

export const peft = defineAdapterTarget({
  name: 'peft',
  title: 'the adapter alone as a PEFT folder',
  output: 'folder',
  types: ['f32'],
  readers: [
    { program: 'PEFT', read: null },
    { program: 'balora', read: 'this version' },
  ],
  namesOf: () => [...TOKENIZER_FILES, MODEL_CARD, LOSS_PLOT],
  write: async ({ tuned, tokenizer, adapter, overwrite }, output) => {
    const fill = async (folder: string): Promise<void> => {
      await tuned.savePretrained(folder);
      await writeTokenizer(tuned.model, tokenizer, folder);
      await writeCard(tuned, { folder, adapter, merged: false });
    };
    await fillFolder(output, fill, [ADAPTER_TENSORS, ADAPTER_CONFIG], { overwrite });
    return [];
  },
});

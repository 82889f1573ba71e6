/** The merged model as a Hugging Face folder, for transformers, vLLM and everything else that reads one. */
import { join } from 'node:path';
import { type MergeError, saveMerged } from '../adapters/merge.ts';
import { endTokens } from '../generate/end_tokens.ts';
import { writeFileAtomic } from '../io/files.ts';
import {
  COMPANIONS,
  GENERATION_CONFIG,
  LOSS_PLOT,
  MODEL_CARD,
  SINGLE_WEIGHTS,
  WEIGHTS_INDEX,
} from '../io/model_folder.ts';
import { ifThere } from '../io/regular_file.ts';
import { readConfigJson } from '../models/config_keys.ts';
import { type Model, type SavedDType, saveModel } from '../models/index.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { endOfTurn } from './chat_turns.ts';
import { writeCard } from './model_card.ts';
import { fillFolder } from './output.ts';
import { type AdapterInput, defineTarget, hasAdapter } from './target.ts';
import { writeTokenizer } from './tokenizer_files.ts';

export const safetensors = defineTarget({
  name: 'safetensors',
  title: 'the merged model as a Hugging Face folder, in shards with an index',
  output: 'folder',
  types: ['f32', 'bf16', 'f16'],
  readers: [
    { program: 'transformers', read: null },
    { program: 'vLLM', read: null },
    { program: 'balora', read: 'this version' },
  ],
  namesOf: (adapted) => [...COMPANIONS, ...(adapted ? [MODEL_CARD, LOSS_PLOT] : [])],
  write: async ({ outtype, ...input }, output) => {
    const dtype = outtype as SavedDType;
    if (hasAdapter(input)) {
      const error = await writeMerged({ ...input, dtype, typeFlag: '--outtype' }, output);
      return [roundingText(error)];
    }
    const { tokenizer, maxShardSize } = input;
    const { model } = input.tuned;
    const fill = async (folder: string): Promise<readonly string[]> => {
      await saveModel(model, folder, { dtype, maxShardSize });
      await writeTokenizer(model, tokenizer, folder);
      await writeGenerationConfig(model, tokenizer, folder);
      return [];
    };
    return fillFolder(output, fill, kLast, input);
  },
});

/** The files that come last, without which there is no model. */
const kLast = [SINGLE_WEIGHTS, WEIGHTS_INDEX, 'config.json'];

/** The input of {@link writeMerged}. */
interface MergedInput extends Omit<AdapterInput, 'outtype' | 'klText'> {
  readonly dtype: SavedDType;
  /** The flag that sets the type, for a warning. */
  readonly typeFlag: '--dtype' | '--outtype';
}

/**
 * Writes the base with the adapter merged in, as a folder that appears complete or not at all. Warns where rounding takes a large
 * part of what the adapter changes.
 */
export async function writeMerged(input: MergedInput, output: string): Promise<MergeError> {
  const { tuned, tokenizer, adapter, dtype, maxShardSize, warn } = input;
  const fill = async (folder: string): Promise<MergeError> => {
    const error = await saveMerged(tuned, folder, { dtype, maxShardSize });
    await writeTokenizer(tuned.model, tokenizer, folder);
    await writeGenerationConfig(tuned.model, tokenizer, folder);
    await writeCard(tuned, { folder, adapter, merged: true });
    return error;
  };
  const error = await fillFolder(output, fill, kLast, input);
  const lost = lostInRounding(error, input);
  if (lost !== null) warn(lost);
  return error;
}

/** The largest rounding error of a merge, for the user. */
export function roundingText({ maxAbsError, module, relativeToDelta }: MergeError): string {
  return (
    `largest rounding error ${maxAbsError.toExponential(2)} in ${module}, ` +
    `${(100 * relativeToDelta).toPrecision(2)} % of the largest change there`
  );
}

/** The share of the largest change that rounding may take before a merge gives a warning: half of the bits of the change are gone. */
const kLostShare = 0.25;

/** A warning where rounding to the file's dtype takes a large part of what the adapter changes; else null. */
function lostInRounding(
  { module, relativeToDelta }: MergeError,
  { dtype, typeFlag }: MergedInput,
): string | null {
  if (dtype === 'f32' || !(relativeToDelta > kLostShare)) return null;
  const share = (100 * relativeToDelta).toPrecision(2);
  return (
    `in ${dtype} the merged weights lose a part of what the adapter learned: rounding takes up to ${share} % of its largest change ` +
    `(${module}); merge with ${typeFlag} f32, or keep the adapter beside its base`
  );
}

/**
 * Writes generation_config.json: that of the base, with every id that ends a text: those of the base, and the end of a turn in the
 * chat template. Only for language models: a classifier ends nothing, and an encoder-decoder's file, without which transformers reads
 * config.json, would lack the id that its decoder starts with.
 */
async function writeGenerationConfig(
  model: Model,
  tokenizer: Tokenizer,
  folder: string,
): Promise<void> {
  if (model.taskType !== 'CAUSAL_LM') return;
  const turn = endOfTurn(tokenizer);
  const ids = [
    ...new Set([...(await endTokens(model, tokenizer)), ...(turn === null ? [] : [turn])]),
  ];
  if (ids.length === 0) return;
  const path = join(folder, GENERATION_CONFIG);
  const { bosId, padId } = tokenizer;
  // The copy of the base's, which endTokens() has checked.
  const own = { bos_token_id: bosId ?? undefined, pad_token_id: padId ?? undefined };
  const base = (await ifThere(readConfigJson(path))) ?? own;
  const config = { ...base, eos_token_id: ids.length === 1 ? ids[0] : ids };
  await writeFileAtomic(path, `${JSON.stringify(config, null, 2)}\n`);
}

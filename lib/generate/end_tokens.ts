/** The ids that end a sequence unless the caller names some. */
import { join } from 'node:path';
import { fileError } from '../errors.ts';
import { ifThere } from '../io/regular_file.ts';
import { readConfigJson } from '../models/config_keys.ts';
import type { Model } from '../models/index.ts';
import { shown } from '../shown.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

const kFile = 'generation_config.json';

/**
 * The end tokens of a model: eos_token_id of its generation_config.json, from which nothing else is taken over; where the model has no
 * such file or key, those of config.json (or of the GGUF file) and of the tokenizer.
 * @throws FormatError naming the file if it cannot be opened or is no JSON object, or the key is neither an id nor a list of them;
 *   NativeError if the disk fails
 */
export async function endTokens(model: Model, tokenizer: Tokenizer | undefined): Promise<number[]> {
  const { folder } = model;
  // A model from a GGUF file has that file as its folder.
  const place = { folder, path: kFile };
  const config = folder === '' ? null : await ifThere(readConfigJson(place, { advice: kAdvice }));
  const ids = idsOf(config?.eos_token_id, join(folder, kFile));
  if (ids !== null) return ids;
  const path = folder === '' ? 'the configuration' : join(folder, 'config.json');
  const own = idsOf(model.configJson().eos_token_id, path) ?? [];
  return [...new Set([...own, ...(tokenizer?.eosId == null ? [] : [tokenizer.eosId])])];
}

const kAdvice = 'correct or delete the file, or pass eosTokenIds';

function idsOf(given: unknown, path: string): number[] | null {
  if (given === undefined || given === null) return null;
  const ids = Array.isArray(given) ? given : [given];
  if (ids.every((id) => Number.isInteger(id) && id >= 0)) return ids as number[];
  const found = shown(given);
  throw fileError(path, `eos_token_id must be an id or a list of ids, got ${found}`, kAdvice);
}

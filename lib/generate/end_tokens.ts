/** The ids that end a sequence unless the caller names some. */
import { join } from 'node:path';
import { FormatError } from '../errors.ts';
import { isMissing, kMaxConfigBytes, readText } from '../io/regular_file.ts';
import type { Model } from '../models/index.ts';
import { shown } from '../shown.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

const kFile = 'generation_config.json';

/**
 * The end tokens of a model: eos_token_id of its generation_config.json, from which nothing else is taken over; where the model has no
 * such file or key, those of config.json (or of the GGUF file) and of the tokenizer.
 * @throws FormatError naming the file if it is no JSON object, or the key is neither an id nor a list of them, and as readText does
 */
export async function endTokens(model: Model, tokenizer: Tokenizer | undefined): Promise<number[]> {
  const path = join(model.folder, kFile);
  const config = await readConfig(model, path);
  const ids = idsOf(config?.eos_token_id, path);
  if (ids !== null) return ids;
  const own = idsOf(model.configJson().eos_token_id, join(model.folder, 'config.json')) ?? [];
  return [...new Set([...own, ...(tokenizer?.eosId == null ? [] : [tokenizer.eosId])])];
}

async function readConfig(model: Model, path: string): Promise<Record<string, unknown> | null> {
  if (model.folder === '') return null; // it was made in memory
  const text = await readText(path, { limit: kMaxConfigBytes }).catch((error: unknown) => {
    // The folder of a model from a GGUF file is that file, below which there is nothing.
    if (isMissing(error)) return null;
    throw error;
  });
  if (text === null) return null;
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new FormatError(`${path}: ${(error as Error).message}`, { path, advice: kAdvice });
  }
  if (typeof json === 'object' && json !== null && !Array.isArray(json)) {
    return json as Record<string, unknown>;
  }
  throw new FormatError(`${path}: must be a JSON object`, { path, advice: kAdvice });
}

const kAdvice = 'correct or delete the file, or pass eosTokenIds';

function idsOf(given: unknown, path: string): number[] | null {
  if (given === undefined || given === null) return null;
  const ids = Array.isArray(given) ? given : [given];
  if (ids.every((id) => Number.isInteger(id) && id >= 0)) return ids as number[];
  const found = shown(given);
  throw new FormatError(`${path}: eos_token_id must be an id or a list of ids, got ${found}`, {
    ...{ path, advice: kAdvice },
  });
}

/** Reading and writing of the files that a tokenizer consists of. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { ArgumentError, type FormatError, fileError } from '../errors.ts';
import { makeFolder, writeFileAtomic } from '../io/files.ts';
import { isModelFolder } from '../io/model_folder.ts';
import { type Place, readOwnText } from '../io/own_files.ts';
import {
  ifThere,
  kMaxConfigBytes,
  listFolder,
  type ReadFileOptions,
  readText,
  statPath,
} from '../io/regular_file.ts';
import { type GgufMetadata, ggufTokenizerConfig } from './gguf_metadata.ts';
import type { TokenizerParts } from './tokenizer_parts.ts';

type Json = Record<string, unknown>;

const kConfig: ReadFileOptions = { limit: kMaxConfigBytes };

/** Either a tokenizer.json with its configuration, or the metadata of a GGUF file with a vocabulary. */
type TokenizerFiles =
  | { path: string; tokenizerJson: Json; tokenizerConfig: Json }
  | { path: string; tokenizerJson: null; metadata: GgufMetadata };

/**
 * Finds and reads the tokenizer's files of a model.
 * @throws FormatError naming a file that is missing or damaged; ArgumentError if a folder holds several GGUF files
 */
export async function readTokenizerFiles(model: string): Promise<TokenizerFiles> {
  const gguf = await findGguf(model);
  const folder = gguf === model ? dirname(model) : model;
  const path = join(folder, 'tokenizer.json');
  const tokenizerJson = await readJsonIfThere({ folder, path: 'tokenizer.json' });
  if (gguf === null && tokenizerJson === null) throw noSuchFile(path);
  const metadata = gguf === null ? null : await readGgufMetadata(gguf);
  if (tokenizerJson === null) {
    return { path: gguf as string, tokenizerJson: null, metadata: metadata as GgufMetadata };
  }
  const tokenizerConfig: Json = {
    ...(metadata === null ? null : ggufTokenizerConfig(metadata)),
    ...(await readJsonIfThere({ folder, path: 'special_tokens_map.json' }, kConfig)),
    ...(await readJsonIfThere({ folder, path: 'tokenizer_config.json' }, kConfig)),
  };
  const template = await ifThere(readOwnText({ folder, path: 'chat_template.jinja' }, kConfig));
  if (template !== null) tokenizerConfig.chat_template = template;
  return { path, tokenizerJson, tokenizerConfig };
}

/** The path of the GGUF file that `model` is or contains; null if there is none, or if the folder is a complete model without it. */
async function findGguf(model: string): Promise<string | null> {
  const info = await statPath(model);
  if (info === null) throw noSuchFile(model);
  if (!info.isDirectory()) {
    if (model.endsWith('.gguf')) return model;
    throw new ArgumentError(`tokenizer: ${model} must be a folder or a .gguf file`);
  }
  const names = await listFolder(model);
  if (isModelFolder(names)) return null;
  const ggufs = names.filter((name) => name.endsWith('.gguf')).sort();
  if (ggufs.length > 1) {
    throw new ArgumentError(
      `tokenizer: ${model} holds several GGUF files (${ggufs.join(', ')}); name one`,
    );
  }
  return ggufs[0] === undefined ? null : join(model, ggufs[0]);
}

async function readGgufMetadata(path: string): Promise<GgufMetadata> {
  // The reader is imported when needed, because everything else here works without the native engine.
  const { GgufFile } = await import('../io/gguf.ts');
  const file = GgufFile.open(path);
  try {
    const { metadata } = file;
    // Values are read while the file is open: those of the tokenizer, and the names by which it knows some models.
    const keys = [...metadata.keys()].filter((key) => /^(tokenizer|general)\./.test(key));
    return new Map(keys.map((key) => [key, metadata.get(key)]));
  } finally {
    file.close();
  }
}

function noSuchFile(path: string): FormatError {
  return fileError(path, 'no such file', 'check the path, or fetch the file');
}

/** Reads a JSON object from a file. @throws FormatError naming the file if it is missing or holds anything else */
export async function readJson(path: string): Promise<Json> {
  return parseJson(path, await readText(path));
}

/**
 * Reads a file of a model's folder, which may have come from anywhere: its text is written again with what is made of the model.
 * @throws FormatError for a link that leads out of the folder
 */
async function readJsonIfThere(place: Place, options?: ReadFileOptions): Promise<Json | null> {
  const text = await ifThere(readOwnText(place, options));
  return text === null ? null : parseJson(join(place.folder, place.path), text);
}

function parseJson(path: string, text: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw fileError(path, `not valid JSON (${(error as Error).message})`);
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    throw fileError(path, 'must hold a JSON object');
  }
  return value as Json;
}

/** Writes tokenizer.json and tokenizer_config.json, each unless it exists. */
export async function writeTokenizerFiles(folder: string, parts: TokenizerParts): Promise<void> {
  const tokenizerJson = withMerges(parts);
  const tokenizerConfig = { tokenizer_class: 'PreTrainedTokenizerFast', ...parts.tokenizerConfig };
  const files = { 'tokenizer.json': tokenizerJson, 'tokenizer_config.json': tokenizerConfig };
  await makeFolder(folder);
  for (const [name, content] of Object.entries(files)) {
    const path = join(folder, name);
    if (!existsSync(path)) await writeFileAtomic(path, `${JSON.stringify(content, null, 2)}\n`);
  }
}

/** The tokenizer.json with its list of merges, which the parts of a SentencePiece BPE leave out. */
function withMerges({ tokenizerJson, merges }: TokenizerParts): Json {
  if (merges === undefined) return tokenizerJson;
  const model = tokenizerJson.model as Json & { vocab: Record<string, number> };
  const pairs = merges.pairs((char) => Object.hasOwn(model.vocab, char));
  return { ...tokenizerJson, model: { ...model, merges: pairs } };
}

/**
 * A digest of a model, by which an adapter, a run and a cache of its outputs recognise their base. It is computed from the tensors
 * as the model's files store them, so that it does not depend on the dtype that they were converted to, nor on the folder, nor on
 * how they are distributed over files.
 */
import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import { FormatError, UnsupportedError } from '../errors.ts';
import { type FileIdentity, readSafetensorsIndex } from '../io/index.ts';
import { SINGLE_WEIGHTS, WEIGHTS_INDEX } from '../io/model_folder.ts';
import { openRegular, readSlices } from '../io/regular_file.ts';
import type { Tensor } from '../tensor.ts';
import type { Model, StoredFile } from './model.ts';
import { findFiles } from './opened.ts';

/** The version of the rules below; digests of other versions cannot be compared. */
export const kBaseDigestVersion = 1;
const kDigits = 32;

/** Bytes that are read at a time, so that the event loop stays responsive. */
const kSliceBytes = 1 << 20;

/** Keys of a configuration that the base's computations do not depend on, or that belong to a head that is trained. */
const kFreeKeys = new Set([
  ...['architectures', 'dtype', 'torch_dtype', 'transformers_version', '_name_or_path'],
  ...['id2label', 'label2id', 'num_labels', 'problem_type'],
]);

/** A digest of a model. */
export interface BaseDigest {
  readonly version: number;
  /** Where the tensors were read: in the model's files, or in memory, where a model has no files or was changed. */
  readonly of: 'files' | 'memory';
  readonly config: string;
  readonly tensors: string;
}

const kDigests = new WeakMap<readonly StoredFile[], Promise<string>>();

/**
 * The digest of a model. The parameters are collected before this returns, so that an adapter may be switched off around the call.
 * It reads all bytes of the model's files once; later calls return the same promise.
 */
export async function baseDigest(model: Model): Promise<BaseDigest> {
  const parameters = [...model.namedParameters()].filter(([name]) => !isTrainedHead(model, name));
  const config = digestOf(JSON.stringify(configOf(model)));
  const { stored } = model;
  const tensors = stored === null ? null : await digestOfFiles(stored);
  if (tensors !== null) return { version: kBaseDigestVersion, of: 'files', config, tensors };
  return {
    version: kBaseDigestVersion,
    of: 'memory',
    config,
    tensors: await digestOfTensors(parameters),
  };
}

/** The digest of the folder of a model that was just written, and whose configuration is that of `model`. */
export async function digestOfFolder(model: Model, folder: string): Promise<BaseDigest> {
  const config = digestOf(JSON.stringify(configOf(model)));
  const tensors = await tensorsOf(await storedFiles(folder));
  return { version: kBaseDigestVersion, of: 'files', config, tensors };
}

/** The number of hexadecimal digits of a digest in a summary. */
const kSummaryDigits = 16;

/**
 * A line that identifies a base in a run's checkpoints: kind, number of parameters and digest.
 * @param options.tensors whether the digest of the tensors is part of it. Default true
 */
export function baseSummary(
  model: Model,
  { of, config, tensors }: BaseDigest,
  { tensors: named = true }: { tensors?: boolean } = {},
): string {
  const parameters = model.parameters().reduce((sum, { size }) => sum + size, 0);
  return [
    `${model.modelType}, ${parameters} parameters, configuration ${config.slice(0, kSummaryDigits)}`,
    ...(named ? [`${of} ${tensors.slice(0, kSummaryDigits)}`] : []),
  ].join(', ');
}

/** The weight files of a folder or GGUF file, as they are now. */
async function storedFiles(path: string): Promise<readonly StoredFile[]> {
  const found = await findFiles(path);
  const paths = found.gguf ? [found.path] : await weightFiles(found.path);
  return Promise.all(paths.map(async (file) => ({ path: file, identity: await identityOf(file) })));
}

async function weightFiles(folder: string): Promise<string[]> {
  const single = join(folder, SINGLE_WEIGHTS);
  if (await exists(single)) return [single];
  const shards = new Set(readSafetensorsIndex(join(folder, WEIGHTS_INDEX)).values());
  return [...shards].map((shard) => join(folder, shard));
}

async function identityOf(path: string): Promise<FileIdentity> {
  const { size, mtimeNs, ino } = await stat(path, { bigint: true });
  return { size, mtimeNs, ino };
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

/** The digest of the tensors in files; null if the files are no longer those from which the model was read. */
async function digestOfFiles(stored: readonly StoredFile[]): Promise<string | null> {
  let digest = kDigests.get(stored);
  if (digest === undefined) {
    digest = checkUnchanged(stored)
      .then(() => tensorsOf(stored))
      .then(async (tensors) => {
        await checkUnchanged(stored);
        return tensors;
      });
    kDigests.set(stored, digest);
  }
  try {
    return await digest;
  } catch {
    return null; // The weights in memory are then what the model is.
  }
}

async function checkUnchanged(stored: readonly StoredFile[]): Promise<void> {
  for (const { path, identity } of stored) {
    const now = await identityOf(path);
    if (
      now.size === identity.size &&
      now.mtimeNs === identity.mtimeNs &&
      now.ino === identity.ino
    ) {
      continue;
    }
    throw new FormatError(`${path}: has changed since the model was loaded`, { path });
  }
}

/** Digest of the tensors in safetensors files by name, dtype, shape and bytes; of a GGUF file as a whole. */
async function tensorsOf(files: readonly StoredFile[]): Promise<string> {
  const entries: [name: string, entry: string][] = [];
  for (const { path } of files) {
    if (path.endsWith('.gguf')) entries.push(['', `gguf ${await crcOf(path, 0, null)}`]);
    else entries.push(...(await entriesOf(path)));
  }
  return digestOfEntries(entries);
}

interface Header {
  readonly [name: string]: {
    readonly dtype: string;
    readonly shape: readonly number[];
    readonly data_offsets: readonly [number, number];
  };
}

/** The tensors of a safetensors file, whose header was checked when the model was loaded. */
async function entriesOf(path: string): Promise<[string, string][]> {
  const file = await openRegular(path);
  let header: Header;
  let data: number;
  try {
    const size = Buffer.alloc(8);
    await file.read(size, 0, 8, 0);
    data = 8 + Number(size.readBigUInt64LE());
    const text = Buffer.alloc(data - 8);
    await file.read(text, 0, text.length, 8);
    header = JSON.parse(text.toString('utf8')) as Header;
  } finally {
    await file.close();
  }
  const entries: [string, string][] = [];
  for (const [name, { dtype, shape, data_offsets: place }] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const crc = await crcOf(path, data + place[0], data + place[1]);
    entries.push([name, `${dtype} ${shape.join()} ${crc}`]);
  }
  return entries;
}

/** The CRC-32 of a part of a file, to its end for null. */
async function crcOf(path: string, start: number, end: number | null): Promise<number> {
  let crc = 0;
  if (end !== null && end <= start) return crc;
  const place = { start, ...(end !== null && { end }), sliceBytes: kSliceBytes };
  for await (const bytes of readSlices(path, place)) crc = crc32(bytes, crc);
  return crc;
}

async function digestOfTensors(parameters: readonly [string, Tensor][]): Promise<string> {
  const entries: [string, string][] = [];
  for (const [name, tensor] of parameters) {
    const values = tensor.encoding === null ? tensor.detach() : tensor.to(tensor.dtype);
    const { buffer, byteOffset, byteLength } = await values.data();
    values.dispose();
    let crc = 0;
    for (let at = 0; at < byteLength; at += kSliceBytes) {
      if (at > 0) await setImmediate();
      const bytes = Math.min(kSliceBytes, byteLength - at);
      crc = crc32(new Uint8Array(buffer, byteOffset + at, bytes), crc);
    }
    entries.push([name, `${tensor.dtype} ${tensor.shape.join()} ${crc}`]);
  }
  return digestOfEntries(entries);
}

function digestOfEntries(entries: readonly [name: string, entry: string][]): string {
  const lines = entries.map((entry) => JSON.stringify(entry)).sort();
  return digestOf(lines.join('\n'));
}

const digestOf = (text: string): string =>
  createHash('sha256').update(text).digest('hex').slice(0, kDigits);

/** Whether a parameter belongs to a classifier's head, which may be new or come from a warm-up. */
function isTrainedHead({ taskType, headPaths }: Model, name: string): boolean {
  return taskType === 'SEQ_CLS' && headPaths.some((path) => name.startsWith(`${path}.`));
}

/** The part of the configuration that the computations depend on, its keys in order. */
function configOf(model: Model): [string, unknown][] {
  // The files of a base that is quantised as it is read hold other values.
  const own: [string, unknown][] = model.isQuantizedHere ? [['base_format', 'nf4']] : [];
  return [...own, ...writtenConfigOf(model)];
}

function writtenConfigOf(model: Model): [string, unknown][] {
  try {
    return Object.entries(model.configJson())
      .filter(([key]) => !kFreeKeys.has(key))
      .sort(([a], [b]) => (a < b ? -1 : 1));
  } catch (error) {
    // Some GGUF files have settings that config.json cannot express; they are compared by their bytes alone.
    if (error instanceof UnsupportedError) return [];
    throw error;
  }
}

/** Finding and opening the files of a model: what is read from a folder, what from a GGUF file. */
import { statSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { withDevice } from '../device.ts';
import { FormatError, UnsupportedError } from '../errors.ts';
import { GgufFile } from '../io/index.ts';
import type { FromPretrainedOptions } from './auto.ts';
import { type ConfigOptions, readConfigJson } from './config_keys.ts';
import type { ModelFamily } from './family.ts';
import { readGguf } from './gguf.ts';
import { hasSafetensors } from './hf_weights.ts';
import { resolveModel } from './hub.ts';
import { familyOfGguf } from './registry.ts';
import type { WeightSource } from './weights.ts';

/** What a model is read from: a folder with config.json and safetensors, or a GGUF file. */
export interface FoundFiles {
  /** The folder or the file. */
  readonly path: string;
  readonly gguf: boolean;
}

/** @throws FormatError for a path that holds neither, or several GGUF files */
export async function findFiles(path: string): Promise<FoundFiles> {
  if (!statSync(path).isDirectory()) {
    if (path.endsWith('.gguf')) return { path, gguf: true };
    throw new FormatError(`${path}: is neither a model folder nor a .gguf file`, { path });
  }
  const names = (await readdir(path)).sort();
  if (names.includes('config.json') && hasSafetensors(path)) return { path, gguf: false };
  const ggufs = names.filter((name) => name.endsWith('.gguf'));
  if (ggufs.length === 1) return { path: join(path, ggufs[0] as string), gguf: true };
  const reason =
    ggufs.length > 1
      ? `holds several GGUF files, name one of them: ${ggufs.join(', ')}`
      : `needs config.json with model.safetensors (or its index and shards), or one .gguf file; it holds ${names.join(', ') || 'nothing'}`;
  throw new FormatError(`${path}: ${reason}`, { path });
}

/**
 * The folder of a checkpoint that can only be a folder, and its config.json.
 * @param what the kind of model, for the message
 * @throws UnsupportedError for a device that cannot be had, or a file
 */
export async function openCheckpoint(
  nameOrPath: string,
  options: FromPretrainedOptions,
  what: string,
): Promise<{ folder: string; path: string; json: Record<string, unknown> }> {
  requireDevice(options);
  const folder = await resolveModel(nameOrPath, options);
  if (!statSync(folder).isDirectory()) {
    throw new UnsupportedError(
      `${folder}: ${what} is read from a folder with config.json and safetensors`,
    );
  }
  const path = join(folder, 'config.json');
  const names = (await readdir(folder)).sort();
  if (!names.includes('config.json')) {
    throw new UnsupportedError(
      `${folder}: ${what} is read from a folder with config.json and safetensors; it holds ${names.join(', ') || 'nothing'}`,
    );
  }
  return { folder, path, json: await readConfigJson(path) };
}

/** A GGUF file of a decoder: its family, its metadata as config.json, its tensors. */
export async function openDecoderGguf(
  path: string,
  options: ConfigOptions,
): Promise<{ family: ModelFamily; json: Record<string, unknown>; source: WeightSource }> {
  const file = GgufFile.open(path);
  try {
    const architecture = String(file.metadata.get('general.architecture') ?? 'none');
    const { family, table } = familyOfGguf(architecture, path);
    return { family, ...(await readGguf(file, table, options)) };
  } catch (error) {
    file.close();
    throw error;
  }
}

/** Fails early: before anything is downloaded or read. @throws UnsupportedError as setDefaultDevice does */
export function requireDevice({ device }: { device?: string | undefined }): void {
  withDevice(device, () => {});
}

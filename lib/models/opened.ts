/** Finding and opening the files of a model: what is read from a folder, what from a GGUF file. */
import { statSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { withDevice } from '../device.ts';
import { FormatError } from '../errors.ts';
import { GgufFile } from '../io/index.ts';
import { isModelFolder } from '../io/model_folder.ts';
import type { ConfigOptions } from './config_keys.ts';
import { type GgufTable, readGguf } from './gguf.ts';
import type { WeightSource } from './weights.ts';

/** The files of a model: a folder with config.json and safetensors, or a GGUF file. */
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
  if (isModelFolder(names)) return { path, gguf: false };
  const ggufs = names.filter((name) => name.endsWith('.gguf'));
  if (ggufs.length === 1) return { path: join(path, ggufs[0] as string), gguf: true };
  const reason =
    ggufs.length > 1
      ? `holds several GGUF files, name one of them: ${ggufs.join(', ')}`
      : `needs config.json with model.safetensors (or its index and shards), or one .gguf file; it holds ${names.join(', ') || 'nothing'}`;
  throw new FormatError(`${path}: ${reason}`, { path });
}

/**
 * A GGUF file, understood but not read: the family of its architecture, its metadata as config.json, its tensors.
 * @throws FormatError, UnsupportedError as `find` and readGguf do
 */
export async function openGguf<F>(
  path: string,
  options: ConfigOptions,
  find: (architecture: string, path: string, file: GgufFile) => { family: F; table: GgufTable },
): Promise<{ family: F; json: Record<string, unknown>; source: WeightSource }> {
  const file = GgufFile.open(path);
  try {
    const { family, table } = find(
      String(file.metadata.get('general.architecture') ?? 'none'),
      path,
      file,
    );
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

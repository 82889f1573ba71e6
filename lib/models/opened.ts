/** Finding and opening of a model's files, which are a folder with safetensors or a GGUF file. */
import { join } from 'node:path';
import { withDevice } from '../device.ts';
import { FormatError } from '../errors.ts';
import { findModel, type ResolveOptions } from '../io/hub.ts';
import { GgufFile } from '../io/index.ts';
import { isModelFolder } from '../io/model_folder.ts';
import { listFolder, statPath } from '../io/regular_file.ts';
import { shown } from '../shown.ts';
import { type ConfigOptions, modelTypeOf, readConfigJson } from './config_keys.ts';
import { type GgufTable, readGguf } from './gguf.ts';
import { HfWeights } from './hf_weights.ts';
import type { WeightSource } from './weights.ts';

/** The files of a model: a folder with config.json and safetensors, or a GGUF file. */
export interface FoundFiles {
  /** The folder or the file. */
  readonly path: string;
  readonly gguf: boolean;
}

/** Advice where a path is no model. */
const kWhatIsAModel =
  'give a folder with config.json and model.safetensors (or its index and shards), a .gguf file, or a folder with one';

/** Finds the files of a model. @throws FormatError for a path that cannot be read, or holds no model or several */
export async function findFiles(path: string): Promise<FoundFiles> {
  const info = await statPath(path);
  if (info?.isDirectory() !== true) {
    if (path.endsWith('.gguf')) return { path, gguf: true };
    const what =
      info === null ? 'no such file or folder' : 'is neither a model folder nor a .gguf file';
    throw new FormatError(`${path}: ${what}`, {
      path,
      advice: kWhatIsAModel,
    });
  }
  const names = (await listFolder(path)).sort();
  if (isModelFolder(names)) return { path, gguf: false };
  const ggufs = names.filter((name) => name.endsWith('.gguf'));
  if (ggufs.length === 1) return { path: join(path, ggufs[0] as string), gguf: true };
  const reason =
    ggufs.length > 1
      ? `holds several GGUF files, ${ggufs.join(', ')}`
      : `is no model: it holds ${names.join(', ') || 'nothing'}`;
  const advice = ggufs.length > 1 ? 'give the path of one of them' : kWhatIsAModel;
  throw new FormatError(`${path}: ${reason}`, { path, advice });
}

/**
 * Opens a GGUF file: the family of its architecture, its metadata as config.json, and its tensors as a source that is not read yet.
 * @throws FormatError, UnsupportedError as `find` and readGguf do
 */
export async function openGguf<F>(
  path: string,
  options: ConfigOptions,
  find: (architecture: string, path: string, file: GgufFile) => { family: F; table: GgufTable },
): Promise<{ family: F; json: Record<string, unknown>; source: WeightSource }> {
  const file = GgufFile.open(path);
  try {
    const architecture = file.metadata.get('general.architecture') ?? 'none';
    if (typeof architecture !== 'string') {
      const found = shown(architecture);
      throw new FormatError(`${path}: general.architecture must be a text, got ${found}`, { path });
    }
    const { family, table } = find(architecture, path, file);
    return { family, ...(await readGguf(file, table, options)) };
  } catch (error) {
    file.close();
    throw error;
  }
}

/** A checkpoint's files with their configuration parsed and their weights not read yet. */
export interface OpenedModel<F> {
  /** The folder, or the GGUF file. */
  readonly folder: string;
  /** Path of the configuration, for messages. */
  readonly path: string;
  readonly family: F;
  readonly json: Record<string, unknown>;
  readonly stored: WeightSource;
}

/**
 * Finds and opens the files of a model.
 * @param ofType finds the family of a model_type
 * @param ofGguf that of a GGUF file's architecture, see {@link openGguf}
 * @throws FormatError, UnsupportedError as they, findModel and {@link findFiles} do
 */
export async function openModel<F>(
  nameOrPath: string,
  options: ConfigOptions & ResolveOptions,
  ofType: (type: string, path: string) => F,
  ofGguf: Parameters<typeof openGguf<F>>[2],
): Promise<OpenedModel<F>> {
  const { path: folder, gguf } = await findFiles(await findModel(nameOrPath, options));
  if (gguf) {
    const { source, ...opened } = await openGguf(folder, options, ofGguf);
    return { folder, path: folder, ...opened, stored: source };
  }
  const path = join(folder, 'config.json');
  const json = await readConfigJson(path);
  const family = ofType(modelTypeOf(json, path), path);
  return { folder, path, family, json, stored: HfWeights.open(folder, '') };
}

/** Checks that a device can be used, before anything is downloaded or read. @throws UnsupportedError as setDefaultDevice does */
export function requireDevice({ device }: { device?: string | undefined }): void {
  withDevice(device, () => {});
}

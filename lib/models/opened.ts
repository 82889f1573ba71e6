/** Finding and opening of a model's files, which are a folder with safetensors or a GGUF file. */
import { join } from 'node:path';
import { withDevice } from '../device.ts';
import { FormatError } from '../errors.ts';
import { GgufFile } from '../io/index.ts';
import { isModelFolder } from '../io/model_folder.ts';
import { listFolder, statPath } from '../io/regular_file.ts';
import { shown } from '../shown.ts';
import {
  type ConfigOptions,
  type Counts,
  checkCounts,
  modelTypeOf,
  type ParseConfigOptions,
  readConfigJson,
} from './config_keys.ts';
import { type GgufTable, readGguf } from './gguf.ts';
import { HfWeights } from './hf_weights.ts';
import type { WeightSource } from './weights.ts';

/** The files of a model: a folder with config.json and safetensors, or a GGUF file. */
interface FoundFiles {
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

/** The families of models that a loader knows. */
export interface Families<F> {
  /** Finds the family of a model_type. */
  ofType(type: string, path: string): F;
  /** Finds the family of a GGUF file's architecture, with the table of its files. */
  ofGguf(architecture: string, path: string, file: GgufFile): { family: F; table: GgufTable };
}

/** Opens a GGUF file: the family of its architecture, its metadata as config.json, and its tensors as a source that is not read yet. */
async function openGguf<F>(
  path: string,
  options: ConfigOptions,
  { ofGguf }: Families<F>,
): Promise<{ family: F; json: Record<string, unknown>; source: WeightSource }> {
  const file = GgufFile.open(path);
  try {
    const architecture = file.metadata.get('general.architecture') ?? 'none';
    if (typeof architecture !== 'string') {
      const found = shown(architecture);
      throw new FormatError(`${path}: general.architecture must be a text, got ${found}`, { path });
    }
    const { family, table } = ofGguf(architecture, path, file);
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
  readonly gguf: boolean;
  /** Path of the configuration, for messages. */
  readonly path: string;
  readonly family: F;
  readonly json: Record<string, unknown>;
  readonly stored: WeightSource;
}

/**
 * Opens the files of a model.
 * @param prefixOf prefix of the tensors of the model without its head, see {@link HfWeights.open}. Default: none
 * @throws FormatError, UnsupportedError as the families, {@link findFiles} and readGguf do
 */
export async function openModel<F>(
  place: string,
  options: ConfigOptions,
  families: Families<F> & { prefixOf?(family: F): string },
): Promise<OpenedModel<F>> {
  const { path: folder, gguf } = await findFiles(place);
  if (gguf) {
    const { source, ...opened } = await openGguf(folder, options, families);
    return { folder, gguf, path: folder, ...opened, stored: source };
  }
  const path = join(folder, 'config.json');
  const json = await readConfigJson(path);
  const family = families.ofType(modelTypeOf(json, path), path);
  const stored = HfWeights.open(folder, families.prefixOf?.(family) ?? '');
  return { folder, gguf, path, family, json, stored };
}

/** The result of reading the configuration, whose counts are checked against the weights. */
export function configured<T>(
  { path, stored }: Pick<OpenedModel<unknown>, 'path' | 'stored'>,
  options: ConfigOptions,
  read: (options: ParseConfigOptions) => T,
): T {
  const counts: Counts = new Map();
  const made = read({ ...options, path, counts });
  checkCounts(path, counts, stored.shapes);
  return made;
}

/** Checks that a device can be used, before anything is downloaded or read. @throws UnsupportedError as setDefaultDevice does */
export function requireDevice({ device }: { device?: string | undefined }): void {
  withDevice(device, () => {});
}

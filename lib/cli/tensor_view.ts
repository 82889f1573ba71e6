/**
 * The tensors of a model or adapter as a table. Only the headers of the files are read, not the data; a model on the Hub is
 * downloaded whole, into the cache from which it is later loaded.
 */
import { basename, join } from 'node:path';
import type { LoraConfig } from '../adapters/config.ts';
import { typeOf } from '../adapters/methods/registry.ts';
import { ADAPTER_TENSORS, readAdapterConfig } from '../adapters/peft_folder.ts';
import { ArgumentError } from '../errors.ts';
import { formatBytes } from '../io/format_bytes.ts';
import { GgufFile } from '../io/gguf.ts';
import { findModel, type ResolveOptions } from '../io/hub.ts';
import { SINGLE_WEIGHTS, WEIGHTS_INDEX } from '../io/model_folder.ts';
import { listFolder, statPath } from '../io/regular_file.ts';
import { readSafetensorsIndex, SafetensorsFile } from '../io/safetensors.ts';
import type { TensorInfo } from '../io/tensor_file.ts';
import { printable, shown } from '../shown.ts';
import { formatCount } from './terminal.ts';
import { textTable } from './text_table.ts';

interface TensorListing {
  /** A line that describes the listed file or folder. */
  readonly title: string;
  readonly tensors: readonly TensorInfo[];
}

/**
 * Lists a model folder (safetensors, single or sharded, or GGUF), an adapter folder, one file, or a model on the Hub.
 * @throws ArgumentError if there are no tensors to list; FormatError for a damaged file; others as resolveModel does
 */
export async function listTensors(
  pathOrId: string,
  options: ResolveOptions = {},
): Promise<TensorListing> {
  const path = await findModel(pathOrId, options);
  if ((await statPath(path))?.isDirectory() !== true) return listFile(path);
  const names = await listFolder(path);
  if (names.includes(ADAPTER_TENSORS)) return listAdapter(path);
  if (names.includes(WEIGHTS_INDEX)) {
    const index = readSafetensorsIndex(join(path, WEIGHTS_INDEX));
    const shards = [...new Set(index.values())].sort();
    const tensors = shards.flatMap((shard) => safetensors(join(path, shard)));
    return { title: `sharded safetensors, ${shards.length} files`, tensors };
  }
  const file =
    names.find((name) => name === SINGLE_WEIGHTS) ??
    names.filter((name) => /\.(gguf|safetensors)$/.test(name)).sort()[0];
  if (file === undefined) {
    throw new ArgumentError(
      `${path}: no .safetensors and no .gguf file in this folder; give the folder of a model or an adapter`,
    );
  }
  return listFile(join(path, file));
}

/** The listing as text: the title, a line for each tensor, and the totals. */
export function tensorTable({ title, tensors }: TensorListing): string {
  const rows = tensors.map(({ name, dtype, shape, bytes }) => [
    name,
    dtype,
    `(${shape.join(', ')})`,
    formatBytes(bytes),
  ]);
  const values = tensors.reduce((sum, { shape }) => sum + shape.reduce((n, d) => n * d, 1), 0);
  const bytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
  const total = `${tensors.length} tensors, ${formatCount(values)} values, ${formatBytes(bytes)}`;
  return [printable(title), ...(rows.length > 0 ? [textTable(rows, 'lllr')] : []), total].join(
    '\n',
  );
}

function listFile(path: string): TensorListing {
  if (path.endsWith('.gguf')) {
    const file = GgufFile.open(path);
    try {
      const architecture = file.metadata.get('general.architecture') ?? 'unknown architecture';
      const title = `${basename(path)}: GGUF v${file.version}, ${String(architecture)}`;
      return { title, tensors: [...file.tensors.values()] };
    } finally {
      file.close();
    }
  }
  if (path.endsWith('.safetensors')) return { title: basename(path), tensors: safetensors(path) };
  throw new ArgumentError(`${path}: must be a folder, or a .safetensors or .gguf file`);
}

async function listAdapter(folder: string): Promise<TensorListing> {
  const title = describeAdapter(await readAdapterConfig(folder));
  return { title, tensors: safetensors(join(folder, ADAPTER_TENSORS)) };
}

/** A line that describes the configuration of an adapter. */
export function describeAdapter(config: LoraConfig): string {
  const { r, loraAlpha, useRslora, initLoraWeights, targetModules, baseModelNameOrPath } = config;
  const targets =
    typeof targetModules === 'string' ? targetModules : (targetModules ?? []).join(', ');
  const placed = `on ${targets || 'no modules'}, base ${baseModelNameOrPath ?? 'not named'}`;
  const { keys, pair, peftType } = typeOf(config);
  if (pair === undefined) {
    const values = Object.values(keys).flatMap((key) =>
      'option' in key ? [`${key.option} ${shown(config[key.option as keyof LoraConfig])}`] : [],
    );
    return `${peftType} adapter: ${[`r ${r}`, ...values].join(', ')}, ${placed}`;
  }
  return (
    `LoRA adapter: r ${r}, alpha ${loraAlpha}${useRslora ? ' (rslora)' : ''}, init ${String(initLoraWeights)}, ` +
    placed
  );
}

function safetensors(path: string): TensorInfo[] {
  const file = SafetensorsFile.open(path);
  try {
    return [...file.tensors.values()];
  } finally {
    file.close();
  }
}

/**
 * The metadata that balora writes into an adapter's safetensors file beside PEFT's `format: pt`: digests by which damage shows when
 * the adapter is loaded. The values are strings, and programs that do not know the keys ignore them; a file that another program
 * wrote has none, and is not checked.
 */
import { createHash } from 'node:crypto';
import { setImmediate } from 'node:timers/promises';
import { FormatError } from '../errors.ts';
import type { Tensor } from '../tensor.ts';

/** Key of the digest of all tensors. */
const kTensors = 'balora_tensors';
/** Key of the digest of adapter_config.json. */
const kConfig = 'balora_config';

/** Keys of adapter_config.json that have no influence on what the adapter computes, and that other programs change. */
const kFreeKeys = [
  'auto_mapping',
  'base_model_name_or_path',
  'inference_mode',
  'peft_version',
  'revision',
];

/** Bytes that are hashed at a time: about a millisecond, so that the event loop stays responsive. */
const kSliceBytes = 1 << 20;

/** The metadata of an adapter's file with these tensors, whose configuration has this text. */
export async function adapterMetadata(
  tensors: Readonly<Record<string, Tensor>>,
  configText: string,
): Promise<Record<string, string>> {
  return {
    format: 'pt',
    [kTensors]: await tensorsDigest(tensors),
    [kConfig]: configDigest(JSON.parse(configText)),
  };
}

/**
 * Checks the tensors of a file against its metadata.
 * @throws FormatError where they are not those that were saved
 */
export async function checkTensors(
  tensors: Readonly<Record<string, Tensor>>,
  metadata: Readonly<Record<string, string>>,
  path: string,
): Promise<void> {
  const written = entryOf(metadata, kTensors);
  if (written === null || written === (await tensorsDigest(tensors))) return;
  throw new FormatError(`${path}: the tensors are not those that were saved: the file is damaged`, {
    path,
    advice: `use a copy of the folder; after a change on purpose, remove ${kTensors} from the file's metadata`,
  });
}

/** A warning where the configuration is another one than that with which the tensors were saved; else null. */
export function configWarning(
  config: unknown,
  metadata: Readonly<Record<string, string>>,
  path: string,
): string | null {
  const written = entryOf(metadata, kConfig);
  if (written === null || written === configDigest(config)) return null;
  return `${path} was changed after the adapter had been saved: it is used as it is now`;
}

function entryOf(metadata: Readonly<Record<string, string>>, key: string): string | null {
  return Object.hasOwn(metadata, key) ? (metadata[key] as string) : null;
}

/** A digest of names, dtypes, shapes and values. */
async function tensorsDigest(tensors: Readonly<Record<string, Tensor>>): Promise<string> {
  const hash = createHash('sha256');
  for (const name of Object.keys(tensors).sort()) {
    const tensor = tensors[name] as Tensor;
    hash.update(`${JSON.stringify([name, tensor.dtype, tensor.shape])}\n`);
    const { buffer, byteOffset, byteLength } = await tensor.data();
    for (let at = 0; at < byteLength; at += kSliceBytes) {
      const bytes = Math.min(kSliceBytes, byteLength - at);
      hash.update(new Uint8Array(buffer, byteOffset + at, bytes));
      if (at + bytes < byteLength) await setImmediate();
    }
  }
  return hash.digest('hex');
}

/** A digest of a configuration, whatever the order of its keys. */
function configDigest(config: unknown): string {
  const entries = Object.entries(config as object).filter(([key]) => !kFreeKeys.includes(key));
  return createHash('sha256')
    .update(JSON.stringify(sorted(Object.fromEntries(entries))))
    .digest('hex');
}

/** A JSON value whose objects have their keys in order. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(entries.map(([key, part]) => [key, sorted(part)]));
}

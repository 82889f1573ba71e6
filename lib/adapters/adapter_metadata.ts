/**
 * The metadata that balora writes into an adapter's safetensors file beside PEFT's `format: pt`: digests by which damage shows when
 * the adapter is loaded. The values are strings, and programs that do not know the keys ignore them; a file that another program
 * wrote has none, and is not checked.
 */
import { createHash } from 'node:crypto';
import { setImmediate } from 'node:timers/promises';
import { z } from 'zod';
import { ArgumentError, FormatError } from '../errors.ts';
import { type BaseDigest, baseDigest, kBaseDigestVersion } from '../models/base_digest.ts';
import type { Model } from '../models/index.ts';
import type { Tensor } from '../tensor.ts';

/** Key of the digest of all tensors. */
const kTensors = 'balora_tensors';
/** Key of the digest of adapter_config.json. */
const kConfig = 'balora_config';

/** Key of the digest of the base. */
const kBase = 'balora_base';
/** Key of the form, which plain adapters do not have. */
const kForm = 'balora_form';
const kForms = ['residual', 'initial'] as const;
/** Key of what the adapter's own base is made by, which only adapters with such a base have. */
const kQuantized = 'balora_quantized';

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

/** A part of an adapter in the residual form. */
export type ResidualForm = (typeof kForms)[number];

/** The base that an adapter belongs on. */
export interface AdapterBase {
  readonly digest: BaseDigest;
  /**
   * The part of a residual form, whose base is the model before tuning without the adapter's first pairs: the trained pairs, or these
   * first ones. Null: the base is the model before tuning.
   */
  readonly form: ResidualForm | null;
  /** Set where the adapter is used on a base of its own, which is made of the base. */
  readonly quantized?: QuantizedForm | null;
}

/**
 * An adapter that is used on codes of the base in its place. Its file holds [A; A0] and [B | -B0], which is nearly the same adapter on the
 * base itself.
 */
export interface QuantizedForm {
  /** The value of `initLoraWeights` by which the codes were made. */
  readonly start: string;
  /** CRC-32 of all codes and their factors. */
  readonly digest: number;
}

/** The metadata of an adapter's file with these tensors, whose configuration has this text. */
export async function adapterMetadata(
  tensors: Readonly<Record<string, Tensor>>,
  configText: string,
  base: AdapterBase,
): Promise<Record<string, string>> {
  return {
    format: 'pt',
    [kBase]: JSON.stringify(base.digest),
    ...(base.form !== null && { [kForm]: base.form }),
    ...(base.quantized && { [kQuantized]: JSON.stringify(base.quantized) }),
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

/** The digest of an adapter's tensors in its metadata; null if there is none. */
export function tensorsDigestIn(metadata: Readonly<Record<string, string>>): string | null {
  return entryOf(metadata, kTensors);
}

/** The form of the adapter's own base that the metadata names; null: it has none. @throws FormatError where that cannot be read */
export function quantizedForm(
  metadata: Readonly<Record<string, string>>,
  path: string,
): QuantizedForm | null {
  const text = entryOf(metadata, kQuantized);
  if (text === null) return null;
  const found = kQuantizedForm.safeParse(jsonOf(text));
  if (found.success) return found.data;
  throw new FormatError(`${path}: ${kQuantized} in the metadata cannot be read`, { path });
}

const kQuantizedForm = z.object({ start: z.string(), digest: z.int().min(0) });

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** The part of a residual form that the metadata names; null: the adapter does not belong on a residual. */
export function residualForm(metadata: Readonly<Record<string, string>>): ResidualForm | null {
  return kForms.find((form) => form === entryOf(metadata, kForm)) ?? null;
}

/** Options of a comparison of a model with an adapter's base. */
export interface BaseCheck {
  readonly folder: string;
  /** Whether a pair may be loaded onto another base than its residual. */
  readonly allowOtherBase: boolean;
}

/**
 * Compares a model with the base that an adapter was saved for.
 * @returns warnings for the user
 * @throws ArgumentError for a pair on a residual, if the model is known not to be that residual
 */
export async function checkBase(
  model: Model,
  metadata: Readonly<Record<string, string>>,
  { folder, allowOtherBase }: BaseCheck,
): Promise<string[]> {
  const text = entryOf(metadata, kBase);
  if (text === null) return [];
  const [then, now] = [parseDigest(text), await baseDigest(model)];
  const difference = differenceOf(then, now);
  if (difference === null) return [];
  const isKnown = then !== null && then.of === now.of;
  const place = model.folder === '' ? model.nameOrPath : model.folder;
  if (residualForm(metadata) === null) {
    return [`${folder}: the adapter was saved for another base: ${place} ${difference}`];
  }
  const fact =
    `${folder}: the adapter is a pair on a residual, and means nothing on another model: ` +
    `${place} ${difference}`;
  if (allowOtherBase || !isKnown) return [fact];
  throw new ArgumentError(
    `${fact}; give the residual model that was written with it (the folder residual), or pass allowOtherBase: true`,
  );
}

/** The difference of a model from an adapter's base, as the end of a message; null: there is none. */
function differenceOf(then: BaseDigest | null, now: BaseDigest): string | null {
  if (then === null) {
    return 'cannot be compared with that one, since another version of balora saved the adapter';
  }
  if (then.of !== now.of) {
    return 'cannot be compared with that one, since one of them has no files or was changed in memory';
  }
  if (then.tensors !== now.tensors) return 'has other weights';
  return then.config === now.config ? null : 'has another configuration';
}

function parseDigest(text: string): BaseDigest | null {
  try {
    const value = JSON.parse(text) as BaseDigest | null;
    return value?.version === kBaseDigestVersion ? value : null;
  } catch {
    return null;
  }
}

function entryOf(metadata: Readonly<Record<string, string>>, key: string): string | null {
  return Object.hasOwn(metadata, key) ? (metadata[key] as string) : null;
}

/** A digest of names, dtypes, shapes and values. */
export async function tensorsDigest(tensors: Readonly<Record<string, Tensor>>): Promise<string> {
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

/** The list of export targets, in the order in which help and errors name them. A new target is one line here. */
import { quantizationErrors } from '../adapters/quantized_base.ts';
import { UnsupportedError } from '../errors.ts';
import { gguf } from './gguf.ts';
import { ggufLora } from './gguf_lora.ts';
import { mlx } from './mlx.ts';
import { modelfile } from './modelfile.ts';
import { checkNewOutput } from './output.ts';
import { peft } from './peft.ts';
import { safetensors } from './safetensors.ts';
import type { ExportInput, ExportTarget, OutType } from './target.ts';

const kTargets = [peft, safetensors, gguf, ggufLora, modelfile, mlx] as const;

/** Names of the targets: `balora export --to`. */
export type ExportTargetName = (typeof kTargets)[number]['name'];

/** Every target, in the order of the list. */
export const EXPORT_TARGETS: readonly ExportTarget<ExportTargetName>[] = kTargets;

/** The names of {@link EXPORT_TARGETS}, in their order. */
export const EXPORT_TARGET_NAMES: readonly ExportTargetName[] = kTargets.map(({ name }) => name);

/** Types of weights that any target writes. */
export const OUT_TYPES: readonly OutType[] = ['f32', 'bf16', 'f16', 'q8_0', 'q4_k_m'];

/** The target of a name, which the option has checked. */
export function exportTarget(name: ExportTargetName): ExportTarget {
  return EXPORT_TARGETS.find((target) => target.name === name) as ExportTarget;
}

/** The type that a target writes: the given one, or its default. @throws UnsupportedError for one that it does not write */
export function outtypeOf({ name, types }: ExportTarget, given: OutType | undefined): OutType {
  if (given === undefined) return types[0] as OutType;
  if (types.includes(given)) return given;
  throw new UnsupportedError(
    `export to ${name}: outtype ${given} is not for this format; choose ${types.join(', ')}`,
  );
}

/** Settings of {@link exportModel}. */
export type ExportSettings = Omit<ExportInput, 'outtype' | 'maxShardSize' | 'klText'> & {
  readonly outtype?: OutType | undefined;
  readonly maxShardSize?: number | undefined;
  readonly klText?: string | null | undefined;
};

/** Default of the largest size of a file of weights, in bytes: that of transformers' save_pretrained. */
export const MAX_SHARD_SIZE = 5e9;

/**
 * Writes a model, with its adapter if it has one, for another program.
 * @returns lines about what was written, for the user
 * @throws ArgumentError for an output that exists, UnsupportedError for what the format cannot hold
 */
export async function exportModel(
  target: ExportTarget,
  { outtype, maxShardSize = MAX_SHARD_SIZE, klText = null, ...input }: ExportSettings,
  output: string,
): Promise<readonly string[]> {
  const type = outtypeOf(target, outtype);
  const { overwrite, adapter } = input;
  const { nameOrPath, folder } = input.tuned.model;
  const sources = [nameOrPath, folder || null, adapter];
  const names = target.namesOf(input.tuned.kind === 'adapter');
  await checkNewOutput(output, target.output, { overwrite, sources, names });
  const lines = await target.write({ ...input, outtype: type, maxShardSize, klText }, output);
  return target.ofAdapter ? [...lines, ...(await leftOut(input))] : lines;
}

/** A line about the part of an adapter on codes of its base that pairs on the base itself leave out. */
async function leftOut({ tuned }: Pick<ExportInput, 'tuned'>): Promise<readonly string[]> {
  const errors = tuned.kind === 'adapter' ? await quantizationErrors(tuned.modules) : null;
  if (errors === null) return [];
  const share = (100 * errors.start).toPrecision(2);
  return [
    `on the original base the pairs lack what the codes have lost, ${share} % of the adapted weights (relative Frobenius norm); balora makes ` +
      'the codes again where it reads a PEFT folder',
  ];
}

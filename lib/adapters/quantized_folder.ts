/**
 * The folder of an adapter with a base of its own (QPiSSA, LoftQ). It is a plain LoRA of rank 2r, [A; A0] and [B | -B0], for programs that
 * know the base alone, on which it is the same adapter but for what the codes lose. Here its two halves are taken apart, and the codes are
 * made again from the base.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ArgumentError, FormatError } from '../errors.ts';
import { mul, slice } from '../ops/index.ts';
import { computeOwned, disposeOnError, type Tensor } from '../tensor.ts';
import { type QuantizedForm, quantizedForm } from './adapter_metadata.ts';
import type { LoraConfig } from './config.ts';
import { type LowRankPair, pairIn, tensorsOfPair } from './low_rank.ts';
import { scalingOf, startNamed, typeOf } from './methods/registry.ts';
import {
  ADAPTER_CONFIG,
  LESS_ADAPTER,
  type ModuleTensors,
  type PeftFolder,
  readPeftFolder,
} from './peft_folder.ts';

/**
 * A folder with its first pairs and the configuration of the adapter itself, where it has a base of its own; others as they are.
 * @throws FormatError for a folder that cannot be understood whole; the tensors stay the caller's
 */
export async function withoutQuantized(
  read: PeftFolder,
  folder: string,
  device: string | undefined,
): Promise<PeftFolder> {
  const { metadata, path, modules, config } = read;
  const form = quantizedForm(metadata, path);
  if (form === null) return read;
  const taken = startNamed(form.start)?.quantizes?.(form.start as never);
  if (taken === undefined) {
    throw new FormatError(`${path}: "${form.start}" is no start that quantises the base`, { path });
  }
  const lessPairs = taken === 'own' ? await lessOf(folder, device) : new Map();
  const isPair = typeOf(config).pair !== undefined;
  const found = new Map<string, ModuleTensors>();
  const firstPairs = new Map<string, LowRankPair>();
  const made: Tensor[] = [];
  for (const { a, b } of lessPairs.values()) made.push(a, b);
  return disposeOnError(made, () => {
    for (const [name, tensors] of modules) {
      const { a, b } = pairIn(tensors);
      const r = isPair ? (a.shape[0] as number) / 2 : Number.NaN;
      if (!Number.isInteger(r) || (taken === 'own' && !lessPairs.has(name))) {
        throw new FormatError(`${path}: ${name} does not hold what its base is made of`, { path });
      }
      const halves = computeOwned(() => ({
        trained: { a: copy(slice(a, 0, { stop: r })), b: copy(slice(b, 1, { stop: r })) },
        first: { a: copy(slice(a, 0, { start: r })), b: mul(slice(b, 1, { start: r }), -1) },
      }));
      for (const one of Object.values(halves)) made.push(one.a, one.b);
      for (const whole of [a, b]) whole.dispose();
      found.set(name, new Map([...tensors, ...tensorsOfPair(halves.trained)]));
      firstPairs.set(name, halves.first);
    }
    return {
      ...read,
      config: ownConfig(config, form),
      modules: found,
      firstPairs,
      lessPairs,
      quantizedDigest: form.digest,
    };
  });
}

const copy = (x: Tensor): Tensor => mul(x, 1);

/** The configuration of the adapter in a folder of twice its rank. */
function ownConfig(config: LoraConfig, { start }: QuantizedForm): LoraConfig {
  const divisor = scalingOf(config).divisor(2);
  // A number that was multiplied by the divisor in the folder: the shorter one, if it gives the same.
  const undone = (product: number): number => {
    const quotient = product / divisor;
    const near = Number(quotient.toPrecision(15));
    return near * divisor === product ? near : quotient;
  };
  return {
    ...config,
    initLoraWeights: start as LoraConfig['initLoraWeights'],
    r: config.r / 2,
    loraAlpha: undone(config.loraAlpha),
    rankPattern: config.rankPattern.map(([name, r]) => [name, r / 2] as const),
    alphaPattern: config.alphaPattern.map(([name, alpha]) => [name, undone(alpha)] as const),
  };
}

/** The pairs in the folder beside. @throws FormatError where it is missing */
async function lessOf(
  folder: string,
  device: string | undefined,
): Promise<ReadonlyMap<string, LowRankPair>> {
  const path = join(folder, LESS_ADAPTER);
  if (!existsSync(join(path, ADAPTER_CONFIG))) {
    throw new FormatError(
      `${folder}: the folder ${LESS_ADAPTER} is missing, from which the adapter's base is made`,
      { path: folder },
    );
  }
  const { modules } = await readPeftFolder(path, { device });
  return new Map(Array.from(modules, ([name, tensors]) => [name, pairIn(tensors)]));
}

/**
 * Checks that the codes that were made again are those that the adapter was saved with.
 * @param made their digest
 * @returns warnings for the user
 * @throws ArgumentError where they are others
 */
export function checkCodes(
  made: number,
  { folder, digest, allowOtherBase }: { folder: string; digest: number; allowOtherBase: boolean },
): string[] {
  if (made === digest) return [];
  const fact = `${folder}: the adapter is used on codes of its base, and the weights of this model give others`;
  if (allowOtherBase) return [fact];
  throw new ArgumentError(
    `${fact}; give the unquantised model that it was trained on, in the same dtype, or pass allowOtherBase: true`,
  );
}

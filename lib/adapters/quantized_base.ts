/**
 * The base that a start makes for its adapter alone (QPiSSA, LoftQ): NF4 codes of a module's weight less a pair, whose values the adapter is
 * used on in the place of the weight. The weight itself stays as it is, for the base, for other adapters, and to make the codes again from
 * the pair, which is all that files hold.
 */
import { crc32 } from 'node:zlib';
import { ArgumentError } from '../errors.ts';
import { fourBitWeight, kBlockSize, nf4Weight, quantizeNf4 } from '../io/blocks.ts';
import type { Linear } from '../nn/linear.ts';
import { mul, square, sub, sum } from '../ops/index.ts';
import { withMemoryTag } from '../runtime.ts';
import { computeOwned, type Tensor } from '../tensor.ts';
import { type LowRankPair, productOf } from './low_rank.ts';

/** The parts that the codes of a module are made of. */
export interface QuantizedParts {
  readonly name: string;
  readonly linear: Linear;
  readonly scale: number;
  /** The pair whose product, times the scale, is taken off the weight; null: the weight itself is quantised. */
  readonly less: LowRankPair | null;
  /** That pair where it belongs to the base, and not to its module; else null. */
  readonly own: LowRankPair | null;
}

/** The codes of one module. */
export class QuantizedBase {
  /** The pair that the weight was quantised without, where it belongs to the base; else null. */
  readonly own: LowRankPair | null;
  readonly #parts: QuantizedParts;
  #weight: Tensor;
  #keys = newKeys();

  constructor(parts: QuantizedParts) {
    this.#parts = parts;
    this.own = parts.own;
    this.#weight = this.#made();
  }

  /** The values of the codes (out,in), in blocks. */
  get weight(): Tensor {
    return this.#weight;
  }

  /** Values of `AdaptedLinear.updateKey` for passes on these codes, which are others when the codes have been made again. */
  get keys(): { readonly student: object; readonly teacher: object } {
    return this.#keys;
  }

  /** Makes the codes again, after the pair has been given other values. */
  renew(): void {
    this.#weight.dispose();
    this.#weight = this.#made();
    this.#keys = newKeys();
  }

  /** The tensors that belong to it. */
  get tensors(): Tensor[] {
    return [this.#weight, ...(this.own === null ? [] : [this.own.a, this.own.b])];
  }

  /** The CRC-32 of the codes and their factors, going on from that of other modules. */
  async digest(before: number): Promise<number> {
    const { packed, absmax } = computeOwned(() => quantizeNf4(this.#residual()));
    let crc = before;
    for (const part of [packed, absmax]) {
      crc = await crcOf(part, crc);
      part.dispose();
    }
    return crc;
  }

  #made(): Tensor {
    const { name, linear } = this.#parts;
    const { shape, dtype, device } = linear.weight;
    const weight = computeOwned(() =>
      withMemoryTag('weights', () => {
        const codes = quantizeNf4(this.#residual());
        const options = { name, shape, dtype, checkFinite: false };
        return fourBitWeight({ type: 'NF4', blockSize: kBlockSize, ...codes }, options).to(device);
      }),
    );
    return weight.freeze();
  }

  /** The values that are quantised, f32 on the CPU. */
  #residual(): Tensor {
    const { linear, less, scale } = this.#parts;
    return residualOf(linear.weight, less, scale);
  }
}

const newKeys = () => ({ student: {}, teacher: {} });

/** The CRC-32 of the codes of all modules that have them, whatever their order. */
export async function codesDigest(
  modules: readonly Pick<QuantizedModule, 'name' | 'quantized'>[],
): Promise<number> {
  let crc = 0;
  for (const { quantized } of byName(modules)) crc = (await quantized?.digest(crc)) ?? crc;
  return crc;
}

/** The CRC-32 of the first pairs of all modules, which with the codes are the model before tuning, going on from that of the codes. */
export async function firstPairsDigest(
  modules: readonly (Named & { readonly frozen: LowRankPair | null })[],
  codes: number,
): Promise<number> {
  let crc = codes;
  for (const { frozen } of byName(modules)) {
    for (const factor of frozen === null ? [] : [frozen.a, frozen.b])
      crc = await crcOf(factor, crc);
  }
  return crc;
}

interface Named {
  readonly name: string;
}

const byName = <M extends Named>(modules: readonly M[]): M[] =>
  [...modules].sort((a, b) => (a.name < b.name ? -1 : 1));

async function crcOf(x: Tensor, before: number): Promise<number> {
  const { buffer, byteOffset, byteLength } = await x.data();
  return crc32(new Uint8Array(buffer, byteOffset, byteLength), before);
}

/** Distances from the weights that were quantised, |W' - W|_F / |W|_F over all modules. */
export interface QuantizationErrors {
  /** Distance of the model before tuning, the codes with the first pairs. */
  readonly start: number;
  /** Distance of the NF4 codes of W itself. */
  readonly plain: number;
}

/** The distances of an adapter's own base from the weights; null: it has none. */
export async function quantizationErrors(
  modules: readonly QuantizedModule[],
): Promise<QuantizationErrors | null> {
  let [start, plain, whole] = [0, 0, 0];
  for (const module of modules) {
    if (module.quantized === null) return null;
    const sums = computeOwned(() => {
      const { name, linear } = module;
      const weight = linear.weight.to('f64');
      const codes = nf4Weight(linear.weight, name, { dtype: 'f32' }).to('f64');
      const distance = (x: Tensor): Tensor => sum(square(sub(x, weight)));
      return [distance(module.startWeight()), distance(codes), sum(square(weight))];
    });
    const [own, other, all] = await Promise.all(sums.map((one) => one.item()));
    for (const one of sums) one.dispose();
    start += own as number;
    plain += other as number;
    whole += all as number;
  }
  if (whole === 0) return null;
  return { start: Math.sqrt(start / whole), plain: Math.sqrt(plain / whole) };
}

/** A module with a base of its own, or none. */
export interface QuantizedModule {
  readonly name: string;
  readonly linear: Linear;
  readonly quantized: QuantizedBase | null;
  /** See `AdaptedLinear.startWeight`. */
  startWeight(): Tensor;
}

/** A weight less s B A, in f32 from f64; on the CPU, so that its codes are the same for all devices. */
export function residualOf(weight: Tensor, less: LowRankPair | null, scale: number): Tensor {
  const values = weight.to('cpu');
  if (less === null) return values.to('f32');
  const product = productOf({ a: less.a.to('cpu'), b: less.b.to('cpu') });
  return sub(values.to('f64'), mul(product, scale)).to('f32');
}

/** Refuses a module whose weight cannot be quantised for an adapter. @throws ArgumentError */
export function checkQuantizable(init: unknown, { name, linear }: QuantizableModule): void {
  const { weight } = linear;
  if (weight.encoding !== null) {
    throw new ArgumentError(
      `initLoraWeights ${init} quantises the weights itself, and ${name} is in blocks (${weight.encoding}) already; load the unquantised ` +
        'model without baseFormat (--base-format), or take pissa on this base',
    );
  }
}

interface QuantizableModule {
  readonly name: string;
  readonly linear: Linear;
}

/**
 * Incremental principal component analysis (Ross et al. 2008): the leading components of all rows seen so far, computed from the
 * components before, the centred rows of the new batch and the correction of the mean. A batch that is given again counts as new rows.
 */
import {
  add,
  concat,
  div,
  lessEqual,
  max,
  mean,
  min,
  mul,
  neg,
  reshape,
  type SvdFactors,
  square,
  sub,
  sum,
  where,
} from '../ops/index.ts';
import { computeOwned, type Tensor } from '../tensor.ts';
import { leadingTriplets } from './leading_triplets.ts';

/** The components of the rows that were seen. */
export interface Components {
  readonly vectors: Tensor; // (K,C) f32, orthonormal rows, whose largest elements are positive
  readonly singular: Tensor; // (K) f32
  /** The sum of squares of all centred rows. */
  readonly scatter: Tensor; // () f32
  /** The share of each component in it. */
  readonly ratios: Tensor; // (K) f32
}

interface Known extends Components {
  readonly mean: Tensor; // (C) f32
  /** Cosine between each vector and the one before the last batch; null after the first one. */
  readonly cosines: Tensor | null; // (K) f32
}

/** The leading components of rows that are given batch by batch. */
export class IncrementalPca {
  #known: Known | null = null;
  #count = 0;

  /** @param options size: number of components K; seed: of the randomised search in large batches */
  constructor(private readonly options: { readonly size: number; readonly seed: number }) {}

  /** The decomposition of the rows so far; null before the first batch. */
  get known(): Known | null {
    return this.#known;
  }

  /** Takes more rows x (N,C), K of them at least. */
  add(x: Tensor): void {
    const before = this.#known;
    this.#known = computeOwned(() => this.#with(x.to('f32'), before));
    this.#count += x.shape[0] as number;
    if (before !== null) disposeAll(before);
  }

  /** The number of rows so far. */
  get count(): number {
    return this.#count;
  }

  /** The tensors of the decomposition by name, which stay its own; none before the first batch. */
  get tensors(): Readonly<Record<string, Tensor>> {
    const { cosines = null, ...known } = this.#known ?? {};
    return { ...(known as Record<string, Tensor>), ...(cosines !== null && { cosines }) };
  }

  /** Goes on from the {@link tensors} and the {@link count} of an earlier analysis. The tensors become its own. */
  restore(tensors: Readonly<Record<string, Tensor>>, count: number): void {
    this.#known = { cosines: null, ...(tensors as unknown as Omit<Known, 'cosines'>) };
    this.#count = count;
  }

  dispose(): void {
    if (this.#known !== null) disposeAll(this.#known);
    this.#known = null;
  }

  #with(x: Tensor, before: Known | null): Known {
    const rows = x.shape[0] as number;
    const own = mean(x, { axis: 0 }); // (C)
    const centred = sub(x, own);
    const spread = sum(square(centred));
    if (before === null) {
      return { ...this.#components(centred, spread), mean: own, cosines: null };
    }
    const total = this.#count + rows;
    const step = sub(own, before.mean);
    const shift = mul(step, Math.sqrt((this.#count / total) * rows)); // (C)
    const earlier = mul(before.vectors, reshape(before.singular, [-1, 1]));
    const stacked = concat([earlier, centred, reshape(shift, [1, -1])]);
    const scatter = add(add(before.scatter, spread), sum(square(shift)));
    const found = this.#components(stacked, scatter);
    const cosines = sum(mul(found.vectors, before.vectors), { axis: 1 });
    return { ...found, mean: add(before.mean, mul(step, rows / total)), cosines };
  }

  #components(a: Tensor, scatter: Tensor): Components {
    const { size: rank, seed } = this.options;
    const { s, vt } = leadingTriplets([{ a, rank, seed }])[0] as SvdFactors;
    const [lowest, highest] = [min, max].map((of) => of(vt, { axis: 1, keepDims: true })) as [
      Tensor,
      Tensor,
    ];
    const vectors = where(lessEqual(neg(lowest), highest), vt, neg(vt));
    // A copy, since a view would keep all vectors in memory.
    const singular = mul(s, 1);
    return { vectors, singular, scatter, ratios: div(square(s), scatter) };
  }
}

function disposeAll(known: Known): void {
  for (const tensor of Object.values(known) as (Tensor | null)[]) tensor?.dispose();
}

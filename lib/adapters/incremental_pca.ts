/**
 * Incremental principal component analysis (Ross et al. 2008): the leading components of all rows seen so far, computed from the
 * components before, the centred rows of the new batch and the correction of the mean. A batch that is given again counts as new rows.
 */
import { type PcaState, pcaUpdates } from '../ops/index.ts';
import { computeOwned, type Tensor } from '../tensor.ts';

/** The leading components of rows that are given batch by batch. */
export class IncrementalPca {
  #known: PcaState | null = null;
  #count = 0;

  /** @param options size: number of components K; seed: of the search in large batches */
  constructor(private readonly options: { readonly size: number; readonly seed: number }) {}

  /** The decomposition of the rows so far; null before the first batch. Of its vectors the first K are components. */
  get known(): PcaState | null {
    return this.#known;
  }

  /** Gives each of several analyses more rows x (N,C), K of them at least; none is named twice. */
  static add(given: readonly { readonly pca: IncrementalPca; readonly x: Tensor }[]): void {
    const found = computeOwned(() =>
      pcaUpdates(
        given.map(({ pca, x }) => {
          const { size: rank, seed } = pca.options;
          const before = pca.#known && { ...pca.#known, count: pca.#count };
          return { x, rank, seed, ...(before && { before }) };
        }),
      ),
    );
    for (const [i, { pca, x }] of given.entries()) {
      pca.dispose();
      pca.#known = found[i] as PcaState;
      pca.#count += x.shape[0] as number;
    }
  }

  /** The number of rows so far. */
  get count(): number {
    return this.#count;
  }

  /** The tensors of the decomposition by name, which stay its own; none before the first batch. */
  get tensors(): Readonly<Record<string, Tensor>> {
    return { ...this.#known };
  }

  /** Goes on from the {@link tensors} and the {@link count} of an earlier analysis. The tensors become its own. */
  restore(tensors: Readonly<Record<string, Tensor>>, count: number): void {
    this.#known = tensors as Readonly<Record<keyof PcaState, Tensor>>;
    this.#count = count;
  }

  dispose(): void {
    for (const tensor of Object.values(this.tensors)) tensor.dispose();
    this.#known = null;
  }
}

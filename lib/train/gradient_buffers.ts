/**
 * Gradient buffers at fixed addresses, since a recorded graph adds to the same memory each time it runs. They are filled with
 * zeros at the start of each accumulation window. A parameter that no backward pass of the window reached has no gradient at
 * its end, exactly as without buffers.
 */
import { fill_, reshape, slice, zeros } from '../ops/index.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';

/** The alignment of the gradients in the buffer: their offsets are multiples of this number of elements. */
const kAlignment = 64;

export class GradientBuffers {
  readonly #leaves: readonly Tensor[];
  readonly #all: Tensor;
  readonly #views: readonly Tensor[];
  readonly #reached = new Set<number>();

  /**
   * Allocates the buffers.
   * @param leaves f32 or f64 tensors, all of the same dtype and device
   */
  constructor(leaves: readonly Tensor[]) {
    this.#leaves = leaves;
    const starts: number[] = [];
    let end = 0;
    for (const { size } of leaves) {
      starts.push(end);
      end += Math.ceil(size / kAlignment) * kAlignment;
    }
    const { dtype, device } = leaves[0] as Tensor;
    this.#all = unscoped(() => zeros([end], { dtype, device }));
    this.#views = unscoped(() =>
      noGrad(() =>
        leaves.map(({ shape, size }, i) => {
          const start = starts[i] as number;
          const part = slice(this.#all, 0, { start, stop: start + size });
          const view = reshape(part, shape);
          if (view !== part) part.dispose();
          return view;
        }),
      ),
    );
  }

  /** Starts a window: fills the buffers with zeros. */
  begin(): void {
    this.#reached.clear();
    noGrad(() => fill_(this.#all, 0));
    for (const [i, leaf] of this.#leaves.entries()) leaf.grad = this.#views[i] as Tensor;
  }

  /** Runs `body` and returns the indices of the leaves that its backward passes added gradients to. */
  watch(body: () => void): readonly number[] {
    const counts = (): number[] => this.#leaves.map(({ gradCount }) => gradCount);
    const before = counts();
    body();
    return counts().flatMap((count, i) => (count === before[i] ? [] : [i]));
  }

  /** Runs `body` and records which leaves its backward passes added gradients to. */
  reach<T>(body: () => T): T {
    let result: T | undefined;
    this.markReached(
      this.watch(() => {
        result = body();
      }),
    );
    return result as T;
  }

  /** Records that gradients were added to these leaves. */
  markReached(leaves: readonly number[]): void {
    for (const i of leaves) this.#reached.add(i);
  }

  /** Ends a window: removes the gradients of leaves that no backward pass reached. */
  end(): void {
    for (const [i, leaf] of this.#leaves.entries()) if (!this.#reached.has(i)) leaf.grad = null;
  }

  /** A key for the set of leaves that have a gradient after end(). */
  get reached(): string {
    return this.#leaves.length === this.#reached.size
      ? 'all'
      : [...this.#reached].sort((a, b) => a - b).join();
  }

  dispose(): void {
    scope(() => {
      for (const leaf of this.#leaves) leaf.grad = null;
    });
    for (const view of this.#views) view.dispose();
    this.#all.dispose();
  }
}

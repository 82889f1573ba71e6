/**
 * Gradients at addresses that do not change: a graph adds to the same memory at every run. They begin a window as zeros;
 * a parameter that no backward pass of the window reached has no gradient in the end, as it would have without buffers.
 */
import { fill_, reshape, slice, zeros } from '../ops/index.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';

/** Elements between the beginnings of two gradients are a multiple of it. */
const kAlignment = 64;

export class GradientBuffers {
  readonly #leaves: readonly Tensor[];
  readonly #all: Tensor;
  readonly #views: readonly Tensor[];
  readonly #reached = new Set<number>();

  /** @param leaves f32 or f64, all of one type and device */
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

  /** Starts a window. */
  begin(): void {
    this.#reached.clear();
    noGrad(() => fill_(this.#all, 0));
    for (const [i, leaf] of this.#leaves.entries()) leaf.grad = this.#views[i] as Tensor;
  }

  /** Runs `body`; which leaves its backward passes added to. */
  watch(body: () => void): readonly number[] {
    const counts = (): number[] => this.#leaves.map(({ gradCount }) => gradCount);
    const before = counts();
    body();
    return counts().flatMap((count, i) => (count === before[i] ? [] : [i]));
  }

  /** Takes note of leaves that were added to. */
  reach(leaves: readonly number[]): void {
    for (const i of leaves) this.#reached.add(i);
  }

  /** Ends a window: leaves that got nothing have no gradient. */
  end(): void {
    for (const [i, leaf] of this.#leaves.entries()) if (!this.#reached.has(i)) leaf.grad = null;
  }

  /** Which leaves have a gradient after end(), as a key. */
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

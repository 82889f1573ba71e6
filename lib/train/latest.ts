/**
 * An iterable of values that are set faster than they are read: a reader gets only the newest value and skips those before it.
 */
export class Latest<T> implements AsyncIterable<T> {
  #value: { readonly value: T } | null = null;
  #ended = false;
  #wake: () => void = () => {};

  set(value: T): void {
    this.#value = { value };
    this.#wake();
  }

  /** Ends the iteration after the current value has been read. */
  end(): void {
    this.#ended = true;
    this.#wake();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void> {
    for (;;) {
      const found = this.#value;
      this.#value = null;
      if (found !== null) yield found.value;
      else if (this.#ended) return;
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}

/** The latest of values that come faster than they are read: a reader gets the newest one and never those before it. */
export class Latest<T> implements AsyncIterable<T> {
  #value: { readonly value: T } | null = null;
  #ended = false;
  #wake: () => void = () => {};

  set(value: T): void {
    this.#value = { value };
    this.#wake();
  }

  /** Ends the iteration after the value that is there. */
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

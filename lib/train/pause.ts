/** A request to pause a run between two steps. */
export class Pause {
  #waiting: (() => void)[] = [];
  #requested = false;

  /** Whether a pause is requested. */
  get requested(): boolean {
    return this.#requested;
  }

  request(): void {
    this.#requested = true;
  }

  withdraw(): void {
    this.#requested = false;
    for (const release of this.#waiting.splice(0)) release();
  }

  /** Waits until the request is withdrawn or the signal stops the run. */
  async wait(signal: AbortSignal | undefined): Promise<void> {
    if (!this.#requested || signal?.aborted) return;
    const waiting = new Promise<void>((resolve) => this.#waiting.push(resolve));
    const release = () => this.withdraw();
    signal?.addEventListener('abort', release, { once: true });
    await waiting;
    signal?.removeEventListener('abort', release);
  }
}

/** A request to pause a run between two steps. */
export class Pause {
  #waiting: (() => void)[] = [];
  #wanted = false;

  /** Whether a pause is requested. */
  get wanted(): boolean {
    return this.#wanted;
  }

  begin(): void {
    this.#wanted = true;
  }

  end(): void {
    this.#wanted = false;
    for (const go of this.#waiting.splice(0)) go();
  }

  /** Waits until the request is withdrawn or the signal stops the run. */
  async wait(signal: AbortSignal | undefined): Promise<void> {
    if (!this.#wanted || signal?.aborted) return;
    const waiting = new Promise<void>((resolve) => this.#waiting.push(resolve));
    const go = () => this.end();
    signal?.addEventListener('abort', go, { once: true });
    await waiting;
    signal?.removeEventListener('abort', go);
  }
}

/** The limit on requests that are answered at the same time: the next ones wait, and of too many the last are refused. */
import { ApiError } from './api_error.ts';

/** Number of latest answers by whose time the wait is estimated. */
const kRecent = 16;
const kLongestRetrySeconds = 60;

/** The limits of {@link Slots}. */
export interface SlotLimits {
  /** Requests that are answered at the same time. */
  readonly concurrent: number;
  /** Requests that wait for that. */
  readonly waiting: number;
}

export class Slots {
  /** The functions that start the requests that wait, in order. */
  readonly #waiting: (() => void)[] = [];
  readonly #seconds: number[] = [];
  #active = 0;

  constructor(private readonly limits: SlotLimits) {}

  /**
   * Waits until there is room for another request.
   * @returns a function that ends the request's use of its slot
   * @throws ApiError (429) at once where too many wait; the signal's reason
   */
  async take(signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.#active < this.limits.concurrent) this.#active++;
    else await this.#wait(signal);
    const begun = performance.now();
    let isTaken = true;
    return () => {
      if (!isTaken) return;
      isTaken = false;
      this.#note((performance.now() - begun) / 1000);
      const next = this.#waiting.shift();
      if (next === undefined) this.#active--;
      else next(); // it gets this slot
    };
  }

  #wait(signal: AbortSignal): Promise<void> {
    const { concurrent, waiting } = this.limits;
    if (this.#waiting.length >= waiting) {
      throw new ApiError(
        `${concurrent} requests are being answered and ${waiting} wait; try again later`,
        {
          ...{ status: 429, code: 'server_busy' },
          headers: { 'Retry-After': String(this.#retrySeconds()) },
        },
      );
    }
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(start), 1);
        reject(signal.reason);
      };
      const start = (): void => {
        signal.removeEventListener('abort', onAbort);
        resolve();
      };
      signal.addEventListener('abort', onAbort, { once: true });
      this.#waiting.push(start);
    });
  }

  /** Seconds until one of those that wait has probably been answered. */
  #retrySeconds(): number {
    const mean = this.#seconds.reduce((sum, own) => sum + own, 0) / (this.#seconds.length || 1);
    const rounds = (this.#waiting.length + 1) / this.limits.concurrent;
    return Math.min(kLongestRetrySeconds, Math.max(1, Math.ceil(mean * rounds)));
  }

  #note(seconds: number): void {
    this.#seconds.push(seconds);
    if (this.#seconds.length > kRecent) this.#seconds.shift();
  }
}

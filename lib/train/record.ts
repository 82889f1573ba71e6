/** The computation of a step's record from the values of its micro-batches. */
import { peakRssBytes } from '../io/peak_memory.ts';
import type { TermValues } from '../losses/term_sums.ts';
import type { StepLosses, StepRecord } from './types.ts';

/** The beginning of the keys of metrics that a loss of the caller's own reports, among the keys of terms. */
export const kCustom = 'custom.';

/** Combines the values: the loss is the task's loss plus the sum, over the terms, of weight times value. */
export function weightedTerms(
  { task, ...all }: TermValues,
  weights: Readonly<Record<string, number>>,
): StepLosses {
  let loss = task;
  const terms: Record<string, StepLosses['terms'][string]> = {};
  const custom: Record<string, number> = {};
  for (const [key, value] of Object.entries(all)) {
    if (key.startsWith(kCustom)) {
      custom[key.slice(kCustom.length)] = value as number;
      continue;
    }
    const weight = weights[key] ?? 0;
    terms[key] = { value, weight };
    loss += weight * (value ?? 0);
  }
  return { loss, taskLoss: task, terms, ...(Object.keys(custom).length > 0 && { custom }) };
}

/** A clock for the time that a run has taken, including the time before it was resumed, and for the speed of its steps. */
export class StepClock {
  private readonly begun = performance.now();
  private stepBegun = this.begun;
  private readonly recent: number[] = [];

  /**
   * Starts the clock.
   * @param before seconds that the run took before it was resumed
   */
  constructor(private readonly before: number) {}

  /** The seconds that the run has taken so far. */
  elapsed(): number {
    return this.before + (performance.now() - this.begun) / 1000;
  }

  /** Marks the start of a step. */
  start(): void {
    this.stepBegun = performance.now();
  }

  /** Marks the end of a step and returns its duration in seconds. */
  stop(): number {
    const seconds = (performance.now() - this.stepBegun) / 1000;
    this.recent.push(seconds);
    if (this.recent.length > kRecentSteps) this.recent.shift();
    return seconds;
  }

  /** The estimated seconds for `steps` more steps, at the speed of the latest ones. */
  estimate(steps: number): number {
    const sum = this.recent.reduce((total, seconds) => total + seconds, 0);
    return this.recent.length === 0 ? 0 : (sum / this.recent.length) * steps;
  }
}

const kRecentSteps = 20;

/** Makes the record of a step, with its keys in the order of metrics.jsonl. */
export function makeRecord({
  losses: { custom, ...losses },
  step,
  epoch,
  seconds,
  ...facts
}: Omit<StepRecord, keyof StepLosses | 'tokensPerSecond' | 'peakRssBytes'> & {
  readonly losses: StepLosses;
  readonly seconds: number;
}): StepRecord {
  return {
    step,
    epoch,
    ...losses,
    gradNorm: facts.gradNorm,
    learningRate: facts.learningRate,
    tokens: facts.tokens,
    supervisedTokens: facts.supervisedTokens,
    tokensPerSecond: facts.tokens / seconds,
    elapsedSeconds: facts.elapsedSeconds,
    peakRssBytes: peakRssBytes(),
    ...(custom && { custom }),
  };
}

/** The computation of a step's record from the values of its micro-batches. */
import { peakRssBytes } from '../io/peak_memory.ts';
import type { TermValues } from '../losses/term_sums.ts';
import type { StepRecord } from './types.ts';

/** The values of the loss terms in a window, with the weights that were applied. */
export interface CombinedTerms {
  /** The weighted sum of the task's loss and the terms. */
  readonly loss: number;
  readonly taskLoss: number;
  /** Unweighted values by the key of the term, in the order of the terms; null where a term is undefined for the window. */
  readonly values: Readonly<Record<string, number | null>>;
  readonly weights: Readonly<Record<string, number>>;
  /** Metrics reported by the caller's own loss; null where there is none. */
  readonly custom: Readonly<Record<string, number>> | null;
}

/** The beginning of the keys of metrics that a loss of the caller's own reports, among the keys of terms. */
export const kCustom = 'custom.';

function nonEmpty<T extends object>(values: T): T | null {
  return Object.keys(values).length === 0 ? null : values;
}

/** Combines the values: the loss is the task's loss plus the sum, over the terms, of weight times value. */
export function weightedTerms(
  { task, ...all }: TermValues,
  weights: Readonly<Record<string, number>>,
): CombinedTerms {
  let loss = task;
  const values: Record<string, number | null> = {};
  const custom: Record<string, number> = {};
  for (const [key, value] of Object.entries(all)) {
    if (key.startsWith(kCustom)) custom[key.slice(kCustom.length)] = value as number;
    else values[key] = value;
    loss += (weights[key] ?? 0) * (value ?? 0);
  }
  return { loss, taskLoss: task, values, weights, custom: nonEmpty(custom) };
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

export interface RecordInput {
  readonly step: number;
  readonly epoch: number;
  readonly terms: CombinedTerms;
  readonly gradNorm: number;
  readonly learningRate: number;
  readonly tokens: number;
  readonly supervisedTokens: number;
  readonly seconds: number;
  readonly elapsedSeconds: number;
}

/** The terms that have a field of their own in every record, even when they are switched off. */
const kFields = ['consistency', 'diversity', 'svd'] as const;

/** Makes the record of a step, with its keys in the order of metrics.jsonl. */
export function makeRecord(input: RecordInput): StepRecord {
  const { custom, loss, taskLoss, values, weights } = input.terms;
  const own = Object.keys(values).filter((key) => !(kFields as readonly string[]).includes(key));
  return {
    step: input.step,
    epoch: input.epoch,
    loss,
    taskLoss,
    consistency: values.consistency ?? null,
    diversity: values.diversity ?? null,
    svd: values.svd ?? null,
    consistencyWeight: weights.consistency ?? 0,
    diversityWeight: weights.diversity ?? 0,
    svdWeight: weights.svd ?? 0,
    gradNorm: input.gradNorm,
    learningRate: input.learningRate,
    tokens: input.tokens,
    supervisedTokens: input.supervisedTokens,
    tokensPerSecond: input.tokens / input.seconds,
    elapsedSeconds: input.elapsedSeconds,
    peakRssBytes: peakRssBytes(),
    ...(own.length === 0 ? {} : { terms: pairsOf(own, values, weights) }),
    ...(custom === null ? {} : { custom }),
  };
}

function pairsOf(
  keys: readonly string[],
  values: CombinedTerms['values'],
  weights: CombinedTerms['weights'],
): Record<string, { value: number | null; weight: number }> {
  return Object.fromEntries(
    keys.map((key) => [key, { value: values[key] ?? null, weight: weights[key] ?? 0 }]),
  );
}

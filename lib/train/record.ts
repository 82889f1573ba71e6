/**
 * From the values of a window's micro-batches to the one record of its step.
 */
import type { TermValues } from '../losses/term_sums.ts';
import type { StepRecord } from './types.ts';

/** The terms of a window, with the weights that they counted with. */
export interface CombinedTerms {
  /** Weighted total. */
  readonly loss: number;
  readonly taskLoss: number;
  /** By key, in the order of the list; a value is null where the term is undefined for the window. */
  readonly values: Readonly<Record<string, number | null>>;
  readonly weights: Readonly<Record<string, number>>;
  /** Metrics of a loss of the caller's own. */
  readonly custom: Readonly<Record<string, number>> | null;
}

/** loss = task + the sum over the terms of weight times value. */
export function weightedTerms(
  { task, ...values }: TermValues,
  weights: Readonly<Record<string, number>>,
  custom: CombinedTerms['custom'] = null,
): CombinedTerms {
  let loss = task;
  for (const [key, value] of Object.entries(values)) loss += (weights[key] ?? 0) * (value ?? 0);
  return { loss, taskLoss: task, values, weights, custom };
}

/** Wall time over all resumptions, and the pace of the steps. */
export class StepClock {
  private readonly begun = performance.now();
  private stepBegun = this.begun;
  private readonly recent: number[] = [];

  /** @param before seconds that the run took before this process */
  constructor(private readonly before: number) {}

  /** Seconds of the run so far. */
  elapsed(): number {
    return this.before + (performance.now() - this.begun) / 1000;
  }

  /** Starts a step. */
  start(): void {
    this.stepBegun = performance.now();
  }

  /** Ends a step: its seconds. */
  stop(): number {
    const seconds = (performance.now() - this.stepBegun) / 1000;
    this.recent.push(seconds);
    if (this.recent.length > kPaceSteps) this.recent.shift();
    return seconds;
  }

  /** Seconds that `steps` more steps take at the pace of the last ones. */
  estimate(steps: number): number {
    const sum = this.recent.reduce((total, seconds) => total + seconds, 0);
    return this.recent.length === 0 ? 0 : (sum / this.recent.length) * steps;
  }
}

const kPaceSteps = 20;
const kBytesPerKiB = 1024;

/** The largest resident memory that this process has had. */
export function peakRssBytes(): number {
  return process.resourceUsage().maxRSS * kBytesPerKiB;
}

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

/** Terms that every record has a field for, whether they are on or not. */
const kFields = ['consistency', 'diversity', 'svd'] as const;

/** The record, its keys in the order of metrics.jsonl. */
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

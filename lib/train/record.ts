/**
 * From the values of a window's micro-batches to the one record of its step.
 */
import type { Term } from './objective.ts';
import type { StepRecord } from './types.ts';

/** A term whose value has arrived from the engine. */
export interface ReadTerm {
  readonly name: Term['name'];
  readonly label?: string;
  /** Mean over the micro-batch's own rows. */
  readonly value: number;
  /** The micro-batch's part of the window's rows. */
  readonly share: number;
  /** What the term counts with in the total. */
  readonly weight: number;
}

export interface CombinedTerms {
  /** Weighted total. */
  readonly loss: number;
  readonly taskLoss: number;
  /** null: no micro-batch has the term. */
  readonly consistency: number | null;
  readonly diversity: number | null;
  readonly svd: number | null;
  readonly consistencyWeight: number;
  readonly diversityWeight: number;
  readonly svdWeight: number;
  readonly custom: Record<string, number> | null;
}

/** Sums over the micro-batches, in f64. An adaptive weight is reported as its mean over the window's rows. */
export function combineTerms(terms: readonly ReadTerm[]): CombinedTerms {
  const mean = (name: Term['name'], key: 'value' | 'weight'): number | null => {
    const own = terms.filter((term) => term.name === name);
    return own.length === 0 ? null : own.reduce((sum, term) => sum + term[key] * term.share, 0);
  };
  const custom: Record<string, number> = {};
  for (const { name, label, value, share } of terms) {
    if (name === 'custom') custom[label ?? ''] = (custom[label ?? ''] ?? 0) + value * share;
  }
  return {
    loss: terms.reduce((sum, { value, share, weight }) => sum + weight * share * value, 0),
    taskLoss: mean('taskLoss', 'value') ?? 0,
    consistency: mean('consistency', 'value'),
    diversity: mean('diversity', 'value'),
    svd: mean('svd', 'value'),
    consistencyWeight: mean('consistency', 'weight') ?? 0,
    diversityWeight: mean('diversity', 'weight') ?? 0,
    svdWeight: mean('svd', 'weight') ?? 0,
    custom: Object.keys(custom).length > 0 ? custom : null,
  };
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

/** The record, its keys in the order of metrics.jsonl. */
export function makeRecord(input: RecordInput): StepRecord {
  const { custom, loss, taskLoss, consistency, diversity, svd, ...weights } = input.terms;
  return {
    step: input.step,
    epoch: input.epoch,
    loss,
    taskLoss,
    consistency,
    diversity,
    svd,
    ...weights,
    gradNorm: input.gradNorm,
    learningRate: input.learningRate,
    tokens: input.tokens,
    supervisedTokens: input.supervisedTokens,
    tokensPerSecond: input.tokens / input.seconds,
    elapsedSeconds: input.elapsedSeconds,
    peakRssBytes: peakRssBytes(),
    ...(custom === null ? {} : { custom }),
  };
}

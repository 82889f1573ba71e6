/**
 * From the values of a window's micro-batches to the one record of its step.
 */
import type { TermValues, TermWeights } from '../losses/nlg.ts';
import type { StepRecord } from './types.ts';

/** The terms of a window, with the weights that they counted with. */
export interface CombinedTerms {
  /** Weighted total. */
  readonly loss: number;
  readonly taskLoss: number;
  /** null: switched off. */
  readonly consistency: number | null;
  readonly diversity: number | null;
  readonly svd: number | null;
  readonly consistencyWeight: number;
  readonly diversityWeight: number;
  readonly svdWeight: number;
  readonly custom: Record<string, number> | null;
}

/** loss = task + l1 consistency + l2 diversity + l3 SVD. */
export function weightedTerms(values: TermValues, weights: TermWeights): CombinedTerms {
  const { task, consistency, diversity, svd } = values;
  return {
    loss:
      task +
      weights.consistency * (consistency ?? 0) +
      weights.diversity * (diversity ?? 0) +
      weights.svd * (svd ?? 0),
    taskLoss: task,
    consistency,
    diversity,
    svd,
    consistencyWeight: weights.consistency,
    diversityWeight: weights.diversity,
    svdWeight: weights.svd,
    custom: null,
  };
}

/** Gathers a user's own loss and metrics, weighted with the micro-batches' shares. */
export function customTerms(): {
  addLoss(value: number, share: number): void;
  addMetric(label: string, value: number, share: number): void;
  combined(): CombinedTerms;
} {
  let loss = 0;
  const metrics: Record<string, number> = {};
  return {
    addLoss: (value, share) => {
      loss += value * share;
    },
    addMetric: (label, value, share) => {
      metrics[label] = (metrics[label] ?? 0) + value * share;
    },
    combined: () => ({
      ...weightedTerms({ task: loss, consistency: null, diversity: null, svd: null }, kNoWeights),
      custom: Object.keys(metrics).length > 0 ? metrics : null,
    }),
  };
}

const kNoWeights: TermWeights = { consistency: 0, diversity: 0, svd: 0 };

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

/**
 * The memory plan of a run: for each micro-batch and layer it chooses between keeping activations and recomputing the layer in
 * the backward pass. The losses are the same for every plan, and the gradients differ only by rounding.
 *
 * The memory of a row is measured under each choice (row_costs.ts), that of the losses on half of the rows and on all, and the memory that stays
 * allocated as well; the rest (the gradients of one layer in progress) is bounded from these. See docs/memory.md.
 */

import type { TunedModel } from '../adapters/tuned_model.ts';
import { sharesProcessMemory } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import { formatBytes } from '../io/format_bytes.ts';
import type { Model } from '../models/index.ts';
import type { LayerKeep } from '../models/layers.ts';
import { Linear } from '../nn/index.ts';
import { memoryStats, resetPeakMemory, trimMemory } from '../runtime.ts';
import type { LossMemory } from '../tasks/task.ts';
import { DTYPE_BYTES, isRecording, Tensor } from '../tensor.ts';
import { collectGarbage } from './garbage.ts';
import { type LossCosts, measureLosses, measureRows, type RowCosts } from './row_costs.ts';

/**
 * A memory budget: `max` for the fastest plan, `min` for the smallest, or a number of bytes for the whole process (on a GPU, of
 * GPU memory).
 */
export type MemoryBudget = 'max' | 'min' | number;

/** The memory plan for a batch with a given number of rows. */
export interface BatchPlan {
  readonly rows: number;
  /** The number of layers for each kind of saved activations. */
  readonly layers: Readonly<Record<LayerKeep, number>>;
  /** Predicted peak memory of the process in bytes (on a GPU, of GPU memory). */
  readonly bytes: number;
  /** Whether the smallest plan is above the budget, too. */
  readonly overBudget: boolean;
  /** Bytes of an offloaded base that stay in memory, of those in `bytes`; null for a base that is not offloaded. */
  readonly residentBytes: number | null;
}

/** Passes that keep nothing: rows of the largest, and bytes beside them. */
export interface PassMemory {
  readonly rows: number;
  readonly bytes: number;
}

/** The memory of a run beside its passes, in bytes. */
export interface RunMemory {
  /** Moments, gradients and what else stays from the first step on, which is not allocated yet. */
  readonly optimizerBytes: number;
  /** The largest gradient of a trained tensor. Default 0. */
  readonly gradientBytes?: number;
  /** The weights' copies in int8, which are not made yet. Default 0. */
  readonly copiesBytes?: number;
  /** Whether activations are kept in int8. Default false. */
  readonly savesInt8?: boolean;
  /** Rows of the largest micro-batch, as far as they are known. Default 1. */
  readonly largest?: number;
  /** The memory of the losses. Default: the chunk of logits alone. */
  readonly losses?: LossMemory | null;
  /** The batches of an evaluation. Default: none is made. */
  readonly evaluation?: PassMemory | null;
  /** The answers to sample prompts, which are computed together. Default: there are none. */
  readonly sampling?: PassMemory | null;
  /** Bytes that writing the result takes. Default 0. */
  readonly writingBytes?: number;
  /** Bytes that reading the checkpoint to resume from takes. Default 0. */
  readonly resumingBytes?: number;
  /** Bytes that a process which does nothing but the run has had before it, at most. Default 0. */
  readonly begunBytes?: number;
}

/** Something that a process does under a budget. */
interface Part {
  readonly what: string;
  /** Bytes of the process meanwhile, or of GPU memory. */
  readonly bytes: number;
  /** The end of "so many bytes". Default: none. */
  readonly how?: string;
  /** Ways to make them fewer. */
  readonly advice: readonly string[];
}

/** A note about a budget for the user; `code` is stable. */
export interface MemoryNote {
  readonly code: 'memory_budget_above_memory';
  readonly message: string;
}

const kKeeps: readonly LayerKeep[] = ['saved', 'lean', 'thin', 'checkpointed'];
/** Memory of the gradients and recomputed values that exist at one time, in multiples of a layer's saved rows. Measured: 1.6. */
const kInFlight = 2;
/** Memory lost to fragmentation when batches differ in length, as a fraction of a batch's memory. */
const kFragmentation = 0.05;
/**
 * Bytes by which a process still grows after the measurement, which begins with all garbage collected: 8 MiB of the kernels' scratch memory,
 * and V8's young generation, which takes up to 32 within some ten steps.
 */
const kGrowthBytes = 40 * 2 ** 20;
/** Packed copies of a weight, in multiples of its bytes: one for each direction, whose blocks are filled up. */
const kPackedCopies = 2.02;
/** Gradients of a trained weight that exist at one time beside the one that is kept: of the head's pass, of singular values, and sums. */
const kWeightGradients = 4;
const kChunkBytes = { max: 100 * 2 ** 20, min: 24 * 2 ** 20 };

/** Limit, in bytes, on the logits that are computed at one time under a budget. */
export function chunkBytesOf(budget: MemoryBudget): number {
  return budget === 'max' ? kChunkBytes.max : kChunkBytes.min;
}

/** Chooses which activations the layers keep for each micro-batch; made by {@link MemoryPlanner.open}. */
export class MemoryPlanner {
  private constructor(
    readonly budget: MemoryBudget,
    private readonly layerCount: number,
    private readonly costs: RowCosts,
    private readonly losses: LossCosts,
    /**
     * Bytes of the process (on a GPU, of GPU memory) without any batch, including both packed copies of the weights and what the first
     * step adds for good.
     */
    private readonly persistentBytes: number,
    /** The share of an offloaded base that stays in memory, at most; null for a base in memory. */
    private readonly mostResident: number | null,
    private readonly run: RunMemory,
    /** Bytes of the process in the measurement itself, at most. */
    private readonly measuringBytes: number,
    private readonly advice: readonly string[],
  ) {}

  /**
   * Measures the memory of a row, of the losses and of the process, and sets the model's `layerKeep` to the plan.
   * @throws ArgumentError with both sizes if even the smallest plan is above the budget; at once for the largest batch that is known, for
   *   evaluations and for the result, else from the forward pass of the batch
   */
  static async open(
    tuned: TunedModel<Model>,
    budget: MemoryBudget,
    run: RunMemory,
  ): Promise<MemoryPlanner> {
    const { offload } = tuned.model;
    const residentBefore = offload?.residentBytes ?? 0;
    const restore = planBefore(tuned.model);
    if (offload !== null) offload.residentBytes = 0;
    try {
      const planner = await MemoryPlanner.measure(tuned, { budget, run, residentBefore });
      planner.check(run.largest ?? 1);
      tuned.model.layerKeep = planner.chooser(tuned.model);
      return planner;
    } catch (error) {
      restore();
      throw error;
    }
  }

  private static async measure(
    tuned: TunedModel<Model>,
    {
      budget,
      run,
      residentBefore,
    }: { budget: MemoryBudget; run: RunMemory; residentBefore: number },
  ): Promise<MemoryPlanner> {
    const { model } = tuned;
    const { device, offload } = model;
    const { optimizerBytes, copiesBytes = 0, savesInt8 = false, largest = 1 } = run;
    resetPeakMemory({ device });
    const { layerCount, costs } = await measureRows(tuned, { savesInt8, largest });
    const { derivedBytes: packedForward, peakBytes } = memoryStats({ device });
    const chunkBytes = chunkBytesOf(budget);
    const losses = run.losses
      ? await measureLosses(run.losses, {
          device,
          largest: largest > 1 ? Math.max(largest, run.evaluation?.rows ?? 0) : 1,
        })
      : { kept: 0, peak: 0, bytes: () => chunkBytes };
    const inProcess = sharesProcessMemory(device);
    if (inProcess) await collectGarbage();
    trimMemory({ device });
    const { liveBytes, derivedBytes } = memoryStats({ device });
    const now = inProcess ? process.memoryUsage().rss : liveBytes + derivedBytes;
    // The backward pass packs a second copy of the weights, in its own layout, where an earlier run on the model has not done so.
    const own = packableWeights(model);
    const ofTeacher = tuned.hasTeacher ? tuned.withTeacher(packableWeights) : [];
    const others = ofTeacher.filter((weight) => !own.includes(weight));
    const packedTeacher = model.dtype === 'f32' ? (kPackedCopies / 2) * bytesOf(others) : 0;
    const packedAgain = Math.min(
      packedForward + packedTeacher,
      Math.max(0, kPackedCopies * bytesOf(own) + packedTeacher - derivedBytes),
    );
    const persistentBytes =
      now + optimizerBytes + copiesBytes + packedAgain + losses.kept + bytesInFlight(model);
    const mostResident =
      offload === null
        ? null
        : budget === 'max'
          ? residentBefore
          : Math.min(offload.stats().totalBytes, budget === 'min' ? 0 : budget);
    const measuringBytes = now + Math.max(0, Math.max(peakBytes, losses.peak) - liveBytes);
    const advice = [
      ...(model.dtype === 'f32' ? ['dtype bf16'] : []),
      ...(model.blockFormat === null && tuned.kind !== 'full' ? ['a base in blocks'] : []),
    ];
    return new MemoryPlanner(
      ...[budget, layerCount, costs, losses, persistentBytes, mostResident, run],
      ...[measuringBytes, advice],
    );
  }

  /** Makes the model's `layerKeep`, which refuses batches that do not fit before anything of them is allocated. */
  private chooser({ device, offload }: Model): Model['layerKeep'] {
    const inProcess = sharesProcessMemory(device);
    // A pass that is not recorded keeps nothing, so that an evaluation's batches may be longer than those of the training.
    const longest = { recorded: 0, other: 0 };
    return (layer, rows) => {
      const kind = isRecording() ? 'recorded' : 'other';
      // Blocks freed by shorter batches are too small for a longer one and would stay allocated: up to a quarter of all memory.
      // Under the smallest plan each forward pass gives them back, since the pieces that are left between blocks would add up.
      const isFirst = this.budget === 'min' && layer === 0;
      const isLonger = rows > longest[kind];
      if (inProcess && (isLonger || isFirst)) trimMemory({ device });
      if (isLonger) {
        longest[kind] = rows;
        if (kind === 'recorded') this.check(rows);
        else this.refuse([this.passOf(`a batch of ${tokens(rows)}`, { rows, bytes: 0 })]);
        // The longest batch leaves so much; a part that changed from batch to batch would be read again and again.
        if (offload !== null && kind === 'recorded') {
          offload.residentBytes = this.plan(rows).residentBytes ?? 0;
        }
      }
      return this.keep(layer, rows);
    };
  }

  /** Limit, in bytes, on the logits that are computed at one time. */
  get chunkBytes(): number {
    return chunkBytesOf(this.budget);
  }

  /**
   * The activations that a layer keeps for a batch with this many rows. The first layers keep the least, because they would
   * hold it the longest.
   */
  keep(layer: number, rows: number): LayerKeep {
    const { layers } = this.planWithoutShare(rows);
    if (layer < layers.checkpointed) return 'checkpointed';
    if (layer < layers.checkpointed + layers.thin) return 'thin';
    return layers.saved > 0 ? 'saved' : 'lean';
  }

  /** The whole plan for a batch with this many rows. */
  plan(rows: number): BatchPlan {
    const chosen = this.planWithoutShare(rows);
    const { budget, mostResident } = this;
    // Between two steps nothing of a batch is there.
    const during = Math.max(chosen.bytes, ...this.partsBetween().map((part) => part.bytes));
    const before = Math.max(...this.partsBefore().map((part) => part.bytes));
    const plan = { ...chosen, overBudget: this.isOver(Math.max(during, before)) };
    if (mostResident === null) return { ...plan, bytes: Math.max(during, before) };
    const left = typeof budget === 'number' ? Math.max(0, budget - during) : mostResident;
    const residentBytes = Math.min(left, mostResident);
    return { ...plan, bytes: Math.max(during + residentBytes, before), residentBytes };
  }

  /** The plan with no part of an offloaded base in memory. */
  private planWithoutShare(rows: number): BatchPlan {
    const { budget, layerCount, mostResident } = this;
    const plan = (of: Partial<BatchPlan['layers']>): BatchPlan =>
      this.planOf(rows, { saved: 0, lean: 0, thin: 0, checkpointed: 0, ...of });
    const fastest = plan({ saved: layerCount });
    // Reading a base again costs more than what `saved` gains.
    const withBase = fastest.bytes + (mostResident ?? 0);
    if (budget === 'max' || (budget !== 'min' && withBase <= budget)) return fastest;
    const smallest = plan({ checkpointed: layerCount });
    if (budget === 'min') return smallest;
    const [lean, thin] = [plan({ lean: layerCount }), plan({ thin: layerCount })];
    /** How many layers have to keep less, for a plan between two that differ in all layers. */
    const count = (from: BatchPlan, to: BatchPlan): number =>
      Math.ceil((layerCount * (from.bytes - budget)) / (from.bytes - to.bytes));
    if (lean.bytes <= budget) return lean;
    if (thin.bytes <= budget) {
      const some = count(lean, thin);
      return plan({ thin: some, lean: layerCount - some });
    }
    const some = Math.min(layerCount, count(thin, smallest));
    return plan({ checkpointed: some, thin: layerCount - some });
  }

  /** The parts of a run before its first step, which are over once a step is planned. */
  private partsBefore(): Part[] {
    const { begunBytes = 0 } = this.run;
    return [
      {
        ...{ what: 'loading the model and starting its adapter', bytes: begunBytes },
        advice: ['another start of the adapter', ...this.advice],
      },
      { what: 'measuring a micro-batch', bytes: this.measuringBytes, advice: this.advice },
    ];
  }

  /** The parts of a run between its steps. */
  private partsBetween(): Part[] {
    const { evaluation = null, sampling = null } = this.run;
    const { writingBytes = 0, resumingBytes = 0 } = this.run;
    const idle = this.persistentBytes + kGrowthBytes;
    const parts: Part[] = [
      {
        ...{ what: 'writing the result', bytes: idle + writingBytes },
        advice: ['a lower rank', ...this.advice],
      },
      {
        ...{ what: 'reading the checkpoint', bytes: idle + resumingBytes },
        advice: this.advice,
      },
    ];
    if (sampling !== null) {
      const how = 'fewer or shorter sample prompts';
      parts.push(this.passOf('answering the sample prompts', sampling, how));
    }
    if (evaluation !== null) {
      const what = `an evaluation with batches of ${tokens(evaluation.rows)}`;
      parts.push(this.passOf(what, evaluation));
    }
    return parts;
  }

  /** A pass that keeps nothing, and the head's pass after it. */
  private passOf(what: string, { rows, bytes }: PassMemory, smaller = 'shorter batches'): Part {
    const inFlight = (1 + kFragmentation) * this.inFlight(rows);
    return {
      ...{ what, bytes: Math.round(this.persistentBytes + kGrowthBytes + inFlight + bytes) },
      advice: [smaller, ...this.advice],
    };
  }

  /** Bytes of a layer in progress, or of the losses, which come between the forward pass and the backward one. */
  private inFlight(rows: number): number {
    const { costs, layerCount } = this;
    return Math.max((kInFlight * rows * costs.exact) / layerCount, this.losses.bytes(rows));
  }

  private isOver(bytes: number): boolean {
    return typeof this.budget === 'number' && bytes > this.budget;
  }

  /** Refuses a micro-batch that does not fit, and what is done beside the steps. @throws ArgumentError about the largest of these */
  private check(rows: number): void {
    const { bytes } = this.planWithoutShare(rows);
    const step: Part = {
      ...{ what: `a micro-batch of ${tokens(rows)}`, bytes },
      ...{
        how: ' with every layer checkpointed',
        advice: ['smaller micro-batches', ...this.advice],
      },
    };
    this.refuse([step, ...this.partsBetween(), ...this.partsBefore()]);
  }

  /** Refuses the largest of these that is above the budget. @throws ArgumentError */
  private refuse(parts: readonly Part[]): void {
    const { what, bytes, how = '', advice } = parts.reduce((a, b) => (b.bytes > a.bytes ? b : a));
    if (!this.isOver(bytes)) return;
    const [needed, given] = [formatBytes(bytes), formatBytes(Number(this.budget))];
    const use = advice.length > 0 ? `, or use ${advice.join(', or ')}` : '';
    throw new ArgumentError(
      `memoryBudget: ${given} is below the smallest plan: ${what} takes ${needed}${how}; raise the budget, give min for the smallest ` +
        `plan whatever it takes${use}`,
    );
  }

  private planOf(rows: number, layers: BatchPlan['layers']): BatchPlan {
    const { costs, layerCount } = this;
    const kept = kKeeps.reduce((sum, keep) => sum + layers[keep] * costs[keep], 0) / layerCount;
    const batch = (1 + kFragmentation) * (rows * kept + this.inFlight(rows));
    const gradients = kWeightGradients * (this.run.gradientBytes ?? 0);
    const bytes = Math.round(this.persistentBytes + kGrowthBytes + batch + gradients);
    return { rows, layers, bytes, overBudget: this.isOver(bytes), residentBytes: null };
  }
}

/** The weights of which packed copies may be kept: those of products. */
function packableWeights(model: Model): readonly Tensor[] {
  const linears = [...model.namedModules()].flatMap(([, module]) =>
    module instanceof Linear ? [module.weight] : [],
  );
  const { head } = model as { head?: unknown };
  return [...new Set([...linears, ...(isHead(head) ? [head.weight] : [])])];
}

/** Bytes of tensors by their dtypes. */
export const bytesOf = (tensors: readonly Tensor[]): number =>
  tensors.reduce((sum, { size, dtype }) => sum + size * DTYPE_BYTES[dtype], 0);

const isHead = (head: unknown): head is { weight: Tensor } =>
  (head as { weight?: unknown } | undefined)?.weight instanceof Tensor;

const tokens = (rows: number): string => `${rows} ${rows === 1 ? 'token' : 'tokens'}`;

/** Keeps, as it is now, what a plan sets of a model. @returns puts it back, by default with the share of an offloaded base in memory */
export function planBefore(model: Model): (options?: { share?: boolean }) => void {
  const { layerKeep, offload } = model;
  const residentBytes = offload?.residentBytes ?? 0;
  return ({ share = true } = {}) => {
    model.layerKeep = layerKeep;
    if (share && offload !== null) offload.residentBytes = residentBytes;
  };
}

/** Bytes of an offloaded base that are in memory at one time beside its share, with the copies that an op packs of them. */
function bytesInFlight({ offload, dtype, blockFormat }: Model): number {
  if (offload === null) return 0;
  const isPacked = dtype === 'f32' && blockFormat === null;
  // The gate and up projections together, or both directions of the head.
  return offload.aheadBytes + (isPacked ? 2 * offload.largestBytes : 0);
}

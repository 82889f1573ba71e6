/**
 * The memory plan of a run: for each micro-batch and layer it chooses between keeping activations and recomputing the layer in
 * the backward pass. The losses are the same for every plan, and the gradients differ only by rounding.
 *
 * The memory of a row is measured under each choice (row_costs.ts), and the memory that stays allocated is measured as well; the rest
 * (the chunk of logits, the gradients of one layer in progress) is bounded from these two. See docs/memory.md.
 */

import type { TunedModel } from '../adapters/tuned_model.ts';
import { sharesProcessMemory } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import { formatBytes } from '../io/format_bytes.ts';
import type { Model } from '../models/index.ts';
import type { LayerKeep } from '../models/layers.ts';
import { memoryStats, trimMemory } from '../runtime.ts';
import { isRecording } from '../tensor.ts';
import { collectGarbage } from './garbage.ts';
import { measureRows, type RowCosts } from './row_costs.ts';

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
  /** Whether this is the smallest plan, and still above the budget. */
  readonly overBudget: boolean;
  /** Bytes of an offloaded base that stay in memory, of those in `bytes`; null for a base that is not offloaded. */
  readonly residentBytes: number | null;
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
/** Bytes by which the kernels' scratch memory and Node's heap still grow after the measurement. */
const kGrowthBytes = 8 * 2 ** 20;
const kChunkBytes = { max: 100 * 2 ** 20, min: 24 * 2 ** 20 };

/** Chooses which activations the layers keep for each micro-batch; made by {@link MemoryPlanner.open}. */
export class MemoryPlanner {
  private constructor(
    readonly budget: MemoryBudget,
    private readonly layerCount: number,
    private readonly costs: RowCosts,
    /** Bytes of the process (on a GPU, of GPU memory) without any batch, including both packed copies of the weights. */
    readonly persistentBytes: number,
    /** The share of an offloaded base that stays in memory, at most; null for a base in memory. */
    private readonly mostResident: number | null,
  ) {}

  /**
   * Measures the memory of a row and of the process, and sets the model's `layerKeep` to the plan.
   * @param optimizerBytes bytes of moments and gradients, which are not allocated yet
   * @param copiesBytes bytes of the weights' copies in int8, which are not made yet
   * @param savesInt8 whether activations are kept in int8
   * @param largest number of rows of the largest batch, as far as it is known
   * @throws ArgumentError with both sizes if even the smallest plan for a batch is above the budget; at once for the largest batch that is
   *   known, else from the forward pass of the batch
   */
  static async open(
    tuned: TunedModel<Model>,
    budget: MemoryBudget,
    {
      optimizerBytes,
      copiesBytes = 0,
      savesInt8 = false,
      largest = 1,
    }: {
      optimizerBytes: number;
      copiesBytes?: number;
      savesInt8?: boolean;
      largest?: number;
    },
  ): Promise<MemoryPlanner> {
    const { device, offload } = tuned.model;
    const residentBefore = offload?.residentBytes ?? 0;
    const restore = planBefore(tuned.model);
    if (offload !== null) offload.residentBytes = 0;
    const { layerCount, costs } = await measureRows(tuned, savesInt8).catch((error: unknown) => {
      restore();
      throw error;
    });
    if (sharesProcessMemory(device)) await collectGarbage();
    trimMemory({ device });
    const { liveBytes, derivedBytes } = memoryStats({ device });
    const inProcess = sharesProcessMemory(device);
    const now = inProcess ? process.memoryUsage().rss : liveBytes + derivedBytes;
    // The backward pass packs a second copy of the weights, in its own layout.
    const persistentBytes =
      now + optimizerBytes + copiesBytes + derivedBytes + bytesInFlight(tuned.model);
    const mostResident =
      offload === null
        ? null
        : budget === 'max'
          ? residentBefore
          : Math.min(offload.stats().totalBytes, budget === 'min' ? 0 : budget);
    const planner = new MemoryPlanner(budget, layerCount, costs, persistentBytes, mostResident);
    const check = (rows: number): void => {
      const plan = planner.plan(rows);
      if (plan.overBudget) throw planner.overBudgetError(plan);
    };
    try {
      check(largest);
    } catch (error) {
      restore();
      throw error;
    }
    let [longest, checked] = [0, largest];
    tuned.model.layerKeep = (layer, rows) => {
      // A pass that records nothing, as those of an evaluation, keeps nothing: it takes less than any plan says.
      if (rows > checked && isRecording()) {
        check(rows); // before anything of it is allocated
        checked = rows;
      }
      // Blocks freed by shorter batches are too small for a longer one and would stay allocated: up to a quarter of all memory.
      // Under the smallest plan each forward pass gives them back, since the pieces that are left between blocks would add up.
      const isFirst = budget === 'min' && layer === 0;
      if (inProcess && (rows > longest || isFirst)) trimMemory({ device });
      if (rows > longest) {
        // The longest batch leaves so much; a part that changed from batch to batch would be read again and again.
        if (offload !== null) offload.residentBytes = planner.plan(rows).residentBytes ?? 0;
      }
      longest = Math.max(longest, rows);
      return planner.keep(layer, rows);
    };
    return planner;
  }

  /** Limit, in bytes, on the logits that are computed at one time. */
  get chunkBytes(): number {
    return this.budget === 'max' ? kChunkBytes.max : kChunkBytes.min;
  }

  /**
   * The activations that a layer keeps for a batch with this many rows. The first layers keep the least, because they would
   * hold it the longest.
   */
  keep(layer: number, rows: number): LayerKeep {
    const { layers } = this.plan(rows);
    if (layer < layers.checkpointed) return 'checkpointed';
    if (layer < layers.checkpointed + layers.thin) return 'thin';
    return layers.saved > 0 ? 'saved' : 'lean';
  }

  /** The whole plan for a batch with this many rows. */
  plan(rows: number): BatchPlan {
    const plan = this.planWithoutShare(rows);
    const { budget, mostResident } = this;
    if (mostResident === null) return plan;
    const left = typeof budget === 'number' ? Math.max(0, budget - plan.bytes) : mostResident;
    const residentBytes = Math.min(left, mostResident);
    return { ...plan, bytes: plan.bytes + residentBytes, residentBytes };
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

  private overBudgetError({ rows, bytes }: BatchPlan): ArgumentError {
    const [needed, given] = [formatBytes(bytes), formatBytes(Number(this.budget))];
    return new ArgumentError(
      `memoryBudget: ${given} is below the smallest plan: a micro-batch of ${rows} ${rows === 1 ? 'token' : 'tokens'} takes ${needed} ` +
        'with every layer checkpointed; raise the budget, give min for the smallest plan whatever it takes, or use smaller micro-batches ' +
        'or dtype bf16',
    );
  }

  private planOf(rows: number, layers: BatchPlan['layers']): BatchPlan {
    const { costs, layerCount } = this;
    const kept = kKeeps.reduce((sum, keep) => sum + layers[keep] * costs[keep], 0) / layerCount;
    const inFlight = (kInFlight * costs.exact) / layerCount;
    const batch = (1 + kFragmentation) * rows * (kept + inFlight);
    const fixed = this.persistentBytes + kGrowthBytes + this.chunkBytes;
    const bytes = Math.round(fixed + batch);
    const smallest = layers.checkpointed === layerCount;
    const overBudget = smallest && typeof this.budget === 'number' && bytes > this.budget;
    return { rows, layers, bytes, overBudget, residentBytes: null };
  }
}

/** Keeps, as it is now, what a plan sets of a model. @returns puts it back */
export function planBefore(model: Model): () => void {
  const { layerKeep, offload } = model;
  const residentBytes = offload?.residentBytes ?? 0;
  return () => {
    model.layerKeep = layerKeep;
    if (offload !== null) offload.residentBytes = residentBytes;
  };
}

/** Bytes of an offloaded base that are in memory at one time beside its share, with the copies that an op packs of them. */
function bytesInFlight({ offload, dtype, blockFormat }: Model): number {
  if (offload === null) return 0;
  const isPacked = dtype === 'f32' && blockFormat === null;
  // The gate and up projections together, or both directions of the head.
  return offload.aheadBytes + (isPacked ? 2 * offload.largestBytes : 0);
}

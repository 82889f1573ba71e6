/**
 * What a run may hold in memory, and what it gives up for it: for each micro-batch and layer it chooses between keeping
 * activations and computing the layer again. The losses are the same whatever the plan, the gradients but for rounding.
 *
 * Rows cost what a small forward shows under each choice; what stands still is measured; the rest (the head's chunk, the
 * gradients in flight of one layer) is bounded from the two. See docs/memory.md.
 */

import type { TunedModel } from '../adapters/tuned_model.ts';
import { sharesProcessMemory } from '../device.ts';
import type { Model } from '../models/index.ts';
import type { LayerKeep } from '../models/layers.ts';
import { memoryStats, synchronize, trimMemory } from '../runtime.ts';
import { scope } from '../tensor.ts';

/** `max`: the fastest. `min`: the smallest. A number: bytes of the whole process, on a GPU of its memory. */
export type MemoryBudget = 'max' | 'min' | number;

/** What a plan says of a batch of so many rows. */
export interface BatchPlan {
  readonly rows: number;
  /** Layers by what they keep. */
  readonly layers: Readonly<Record<LayerKeep, number>>;
  /** Foretold peak of the process, on a GPU of its memory. */
  readonly bytes: number;
}

/** Bytes that a row takes in all layers together, by what they keep. */
type RowCosts = Readonly<Record<LayerKeep, number>>;

const kKeeps: readonly LayerKeep[] = ['saved', 'lean', 'checkpointed'];
const kProbeRows = 64;
/** Gradients and recomputed values in flight, in layers' worth of saved rows. */
const kInFlight = 2.5;
/** What batches of many lengths leave between blocks, as a share of what a batch takes. */
const kBetweenBlocks = 0.05;
/** What the kernels' scratch and Node's heap still grow by after the measurement. */
const kGrowthBytes = 8 * 2 ** 20;
const kChunkBytes = { most: 100 * 2 ** 20, least: 24 * 2 ** 20 };

/** Chooses what the layers keep of each micro-batch. Made by {@link MemoryPlanner.open}. */
export class MemoryPlanner {
  private constructor(
    readonly budget: MemoryBudget,
    private readonly layerCount: number,
    private readonly costs: RowCosts,
    /** Bytes of the process (on a GPU of its memory) without any batch, both packed copies of the weights included. */
    readonly standingBytes: number,
  ) {}

  /**
   * Measures, and sets the model up.
   * @param optimizerBytes moments and gradients, which do not exist yet
   */
  static async open(
    tuned: TunedModel<Model>,
    budget: MemoryBudget,
    { optimizerBytes }: { optimizerBytes: number },
  ): Promise<MemoryPlanner> {
    const { layerCount, costs } = await probe(tuned);
    const { device } = tuned.model;
    trimMemory({ device });
    const { liveBytes, derivedBytes } = memoryStats({ device });
    const inProcess = sharesProcessMemory(device);
    const now = inProcess ? process.memoryUsage().rss : liveBytes + derivedBytes;
    // The backward packs the weights once more, for its direction.
    const standing = now + optimizerBytes + derivedBytes;
    const planner = new MemoryPlanner(budget, layerCount, costs, standing);
    let longest = 0;
    tuned.model.layerKeep = (layer, rows) => {
      // Beside what a longer batch needs would stay what shorter ones have left in pieces: up to a quarter of all.
      if (inProcess && rows > longest) trimMemory({ device });
      longest = Math.max(longest, rows);
      return planner.keep(layer, rows);
    };
    return planner;
  }

  /** Bound on the head's logits in work. */
  get chunkBytes(): number {
    return this.budget === 'max' ? kChunkBytes.most : kChunkBytes.least;
  }

  /** What layer i keeps of a batch of so many rows: the first layers the least, as they keep it the longest. */
  keep(layer: number, rows: number): LayerKeep {
    const { layers } = this.plan(rows);
    if (layer < layers.checkpointed) return 'checkpointed';
    return layers.saved > 0 ? 'saved' : 'lean';
  }

  /** The whole plan of a batch of so many rows. */
  plan(rows: number): BatchPlan {
    const { budget, layerCount } = this;
    const most = this.planOf(rows, { saved: layerCount, lean: 0, checkpointed: 0 });
    if (budget === 'max' || (budget !== 'min' && most.bytes <= budget)) return most;
    const givingUp = (checkpointed: number): BatchPlan =>
      this.planOf(rows, { saved: 0, lean: layerCount - checkpointed, checkpointed });
    if (budget === 'min') return givingUp(layerCount);
    const over = givingUp(0).bytes - budget;
    const gain = (givingUp(0).bytes - givingUp(layerCount).bytes) / layerCount;
    return givingUp(over <= 0 ? 0 : Math.min(layerCount, Math.ceil(over / gain)));
  }

  private planOf(rows: number, layers: BatchPlan['layers']): BatchPlan {
    const { costs, layerCount } = this;
    const kept = kKeeps.reduce((sum, keep) => sum + layers[keep] * costs[keep], 0) / layerCount;
    const inFlight = (kInFlight * costs.saved) / layerCount;
    const batch = (1 + kBetweenBlocks) * rows * (kept + inFlight);
    const fixed = this.standingBytes + kGrowthBytes + this.chunkBytes;
    return { rows, layers, bytes: Math.round(fixed + batch) };
  }
}

/** Forwards a few rows under each choice and looks at what they leave for the backward. */
async function probe(tuned: TunedModel<Model>): Promise<{ layerCount: number; costs: RowCosts }> {
  const { model } = tuned;
  const { device } = model;
  let layerCount = 0;
  const costs = { saved: 0, lean: 0, checkpointed: 0 };
  const batches = model.probeBatches(kProbeRows);
  // The first passes pack the weights and are not counted.
  const passes = [
    ...batches.map((batch) => ({ keep: 'saved' as const, batch, counts: false })),
    ...kKeeps.flatMap((keep) => batches.map((batch) => ({ keep, batch, counts: true }))),
  ];
  for (const { keep, batch, counts } of passes) {
    model.layerKeep = (layer) => {
      layerCount = Math.max(layerCount, layer + 1);
      return keep;
    };
    await synchronize();
    const before = memoryStats({ device }).liveBytes;
    const hidden = scope(() => model.forward(batch)); // as a step does: what stays is the backward's
    await synchronize();
    const cost = Math.max(0, memoryStats({ device }).liveBytes - before) / kProbeRows;
    if (counts) costs[keep] = Math.max(costs[keep], cost);
    hidden.dispose();
  }
  await synchronize();
  // A model without the shared loop over layers has nothing to choose.
  return { layerCount: Math.max(1, layerCount), costs };
}

/**
 * The memory that a row of a batch takes until its backward pass, by what the layers keep, measured by forward passes over a few rows.
 * The first pass has all layers. Most models have few kinds of layers, and the other passes then have one or two layers of each kind,
 * whose difference stands for the rest of it: together they cost a fraction of the first, and read as little of an offloaded base.
 */

import type { TunedModel } from '../adapters/tuned_model.ts';
import type { Model } from '../models/index.ts';
import { isTrained, Layer, type LayerKeep } from '../models/layers.ts';
import { memoryStats, resetPeakMemory, synchronize, withInt8Products } from '../runtime.ts';
import type { LossMemory } from '../tasks/task.ts';
import { scope, type Tensor } from '../tensor.ts';

/**
 * Bytes per row in all layers together, for each kind of saved activations; `exact` are those of `saved` where nothing is kept in
 * int8, which gradients and recomputed values never are.
 */
export type RowCosts = Readonly<Record<LayerKeep | 'exact', number>>;

type AnyLayer = Layer<unknown>;

/** Bytes of the losses of a micro-batch beside the forward pass, as a line over its rows, and those that are kept from the first step on. */
export interface LossCosts {
  readonly kept: number;
  /** Bytes of all tensors in the measurement itself, at most. */
  readonly peak: number;
  readonly bytes: (rows: number) => number;
}

/** A forward pass that is measured. */
interface Pass {
  readonly keep: LayerKeep;
  readonly savedActivations: boolean;
  /** The layers that are computed; null: all. */
  readonly layers: readonly AnyLayer[] | null;
  readonly rows: number;
}

/** Rows of the measurement of layers, at most. */
const kMostRows = 96;
/** Rows of the larger measurement of the losses, at most. */
const kMostLossRows = 2048;

/**
 * Measures what a row takes, and counts the layers. Sets the model's `layerKeep`.
 * @param options savesInt8: whether activations are kept in int8; largest: rows of the largest micro-batch, 1 where that is not known
 */
export async function measureRows(
  tuned: TunedModel<Model>,
  { savesInt8, largest }: { savesInt8: boolean; largest: number },
): Promise<{ readonly layerCount: number; readonly costs: RowCosts }> {
  const { model } = tuned;
  const kinds = layerKinds(tuned);
  const rows = largest > 1 ? Math.min(largest, kMostRows) : kMostRows;
  const whole = { keep: 'saved', savedActivations: false, layers: null, rows } as const;
  const all = await bytesOf(model, whole);
  const exact = Math.max(...all.bytes);
  const costOf = (keep: LayerKeep) =>
    cost(model, kinds, { keep, savedActivations: savesInt8, rows });
  const costs = {
    exact,
    saved: savesInt8 ? await costOf('saved') : exact,
    lean: await costOf('lean'),
    thin: await costOf('thin'),
    checkpointed: await costOf('checkpointed'),
  };
  // A model that does not use the shared loop over layers has no choice to make.
  return { layerCount: Math.max(1, all.layerCount), costs };
}

/** Bytes of a row in all layers, measured on few of them where that is less work. */
async function cost(
  model: Model,
  kinds: readonly (readonly AnyLayer[])[],
  pass: Omit<Pass, 'layers'>,
): Promise<number> {
  const one = kinds.map(([first]) => first as AnyLayer);
  const repeated = kinds.filter(({ length }) => length > 1);
  const few = one.length + repeated.length * (one.length + 1);
  if (few >= kinds.flat().length) {
    return Math.max(...(await bytesOf(model, { ...pass, layers: null })).bytes);
  }
  const base = (await bytesOf(model, { ...pass, layers: one })).bytes;
  const sums = [...base];
  for (const kind of repeated) {
    const layers = [...one, kind[1] as AnyLayer];
    const { bytes } = await bytesOf(model, { ...pass, layers });
    for (const [b, more] of bytes.entries()) {
      sums[b] = (sums[b] as number) + (kind.length - 1) * (more - (base[b] as number));
    }
  }
  return Math.max(...sums);
}

/** The bytes of a row that a forward pass keeps, for each of the model's batches for it; and the number of layers in it. */
async function bytesOf(
  model: Model,
  { keep, savedActivations, layers, rows }: Pass,
): Promise<{ layerCount: number; bytes: number[] }> {
  const { device } = model;
  let layerCount = 0;
  model.layerKeep = (layer) => {
    layerCount = Math.max(layerCount, layer + 1);
    return keep;
  };
  const left = layers === null ? [] : layersOf(model).filter(([, each]) => !layers.includes(each));
  const bytes: number[] = [];
  for (const [, layer] of left) layer.isSkipped = true;
  try {
    for (const batch of model.probeBatches(rows)) {
      // Only tensors for the backward pass remain, as in a step.
      const hidden = withInt8Products({ savedActivations }, () =>
        scope(() => model.forward(batch)),
      );
      await synchronize();
      const before = memoryStats({ device }).liveBytes;
      // Tables that a first pass leaves behind are not counted: they are there once.
      hidden.dispose();
      await synchronize();
      bytes.push(Math.max(0, before - memoryStats({ device }).liveBytes) / rows);
    }
  } finally {
    for (const [, layer] of left) layer.isSkipped = false;
  }
  return { layerCount, bytes };
}

/**
 * Measures what the losses take on half of the rows and on all of them. It leaves behind what a first step does: a head's packed copies, and
 * the kernels' scratch memory, which both are then part of the process.
 * @param largest rows of the largest batch, where known
 */
export async function measureLosses(
  memory: LossMemory,
  { device, largest }: { device: string; largest: number },
): Promise<LossCosts> {
  const peakOf = async (rows: number): Promise<number> => {
    await synchronize();
    const before = memoryStats({ device }).liveBytes;
    resetPeakMemory({ device });
    memory.probe(rows);
    await synchronize();
    return memoryStats({ device }).peakBytes - before;
  };
  const many = largest > 1 ? Math.min(largest, kMostLossRows) : kMostLossRows;
  const { liveBytes } = memoryStats({ device });
  const few = Math.ceil(many / 2);
  const [half, whole] = [await peakOf(few), await peakOf(many)];
  const row = many > few ? Math.max(0, (whole - half) / (many - few)) : 0;
  const fixed = Math.max(half, whole) - row * many;
  return {
    kept: memory.bytes(many).kept,
    peak: liveBytes + Math.max(half, whole),
    bytes: (rows) => fixed + row * rows + memory.bytes(rows).working,
  };
}

function layersOf(model: Model): [path: string, layer: AnyLayer][] {
  return [...model.namedModules()].filter(
    (entry): entry is [string, AnyLayer] => entry[1] instanceof Layer,
  );
}

/** The layers by kind: those of one kind have the same modules and trained tensors, and keep the same number of bytes. */
function layerKinds(tuned: TunedModel<Model>): AnyLayer[][] {
  const state = Object.entries(tuned.state());
  const kinds = new Map<string, AnyLayer[]>();
  // Below the first trained tensor nothing is kept.
  let isRecorded = false;
  for (const [path, layer] of layersOf(tuned.model)) {
    isRecorded ||= isTrained(layer);
    const own = state.filter(([name]) => name.startsWith(`${path}.`));
    const parts = [
      ...[...layer.namedModules()].map(([name, module]) => [name, module.constructor.name]),
      ...[...layer.namedParameters()].map(([name, tensor]) => [name, formOf(tensor)]),
      ...own.map(([name, tensor]) => [name.slice(path.length), formOf(tensor)]),
    ];
    const kind = JSON.stringify([isRecorded, parts]);
    kinds.set(kind, [...(kinds.get(kind) ?? []), layer]);
  }
  return [...kinds.values()];
}

/** The facts of a tensor on which the memory of a pass depends. */
const formOf = ({ dtype, shape, encoding, requiresGrad }: Tensor): unknown[] => [
  dtype,
  shape,
  encoding,
  requiresGrad,
];

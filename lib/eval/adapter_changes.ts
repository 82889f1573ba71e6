/** Measures of the change of each weight by an adapter: its size, its ranks, and the intruder dimensions that it makes. */
import type { AdapterModel } from '../adapters/adapter_model.ts';
import { changeOf, rankOfEnergy } from '../adapters/changes.ts';
import type { Model } from '../models/index.ts';
import { add, mul, sum, svd } from '../ops/index.ts';
import { type CallTable, checkCall, finiteNumber, kCall, listOf } from '../options/call.ts';
import { computeOwned, type Tensor } from '../tensor.ts';
import { intrudersOf, largestCosines } from './intruders.ts';
import { stableRankOf } from './spectrum.ts';

/** The change of one weight by an adapter. */
export interface ModuleChange {
  /** Path of the module in the model. */
  readonly name: string;
  /** Rank that the adapter gives the module. */
  readonly r: number;
  /** ||change||_F / ||weight||_F; infinite for a weight of zeros that is changed. */
  readonly size: number;
  /** Stable rank of the change, sum s^2 / s_max^2 of its singular values s; 0 where nothing is changed. */
  readonly stableRank: number;
  /** The smallest rank that holds each of the shares `energies` of the squared singular values; 0 where nothing is changed. */
  readonly ranks: readonly number[];
  /** Number of intruder dimensions, see {@link intruderDimensions}; null: they were not asked for. */
  readonly intruders: number | null;
}

/** Options of {@link adapterChanges}. */
export interface AdapterChangeOptions {
  /** Shares of the squared singular values of a change, each above 0 and at most 1. Default 0.5, 0.9 and 0.99. */
  readonly energies?: readonly number[];
  /** Whether intruder dimensions are counted, which takes two further decompositions a module. Default true. */
  readonly intruders?: boolean;
  readonly signal?: AbortSignal | undefined;
  /** Called after each module with the number of modules that have been looked at, and of all. */
  readonly onProgress?: (done: number, all: number) => void;
}

const kTable: CallTable<AdapterChangeOptions> = {
  energies: listOf(
    finiteNumber({ least: 0, above: true, most: 1 }),
    'a list of numbers above 0 and at most 1',
  ),
  intruders: kCall.boolean,
  signal: kCall.signal,
  onProgress: kCall.function,
};

/** A change that is smaller in proportion is the rounding of a fresh adapter whose parts cancel, such as HRA's reflections. */
const kRounding = 1e-13;

/** Default shares of the squared singular values. */
export const ENERGIES: readonly number[] = [0.5, 0.9, 0.99];

/**
 * Measures what the active adapter changes in the weight of each of its modules, in f64, whatever its method. A trained bias and modules
 * that are trained whole are no part of it.
 * @returns a line for each module, in the adapter's order
 */
export async function adapterChanges(
  tuned: AdapterModel<Model>,
  options: AdapterChangeOptions = {},
): Promise<readonly ModuleChange[]> {
  checkCall('adapterChanges', options, kTable);
  const { energies = ENERGIES, intruders = true, signal, onProgress } = options;
  const changes: ModuleChange[] = [];
  for (const module of tuned.modules) {
    signal?.throwIfAborted();
    const found = computeOwned(() => {
      const base = module.linear.weight.to('f64');
      const change = changeOf(module);
      return {
        weight: sum(mul(base, base)),
        values: svd(change).s,
        cosines: intruders ? largestCosines(base, add(base, change)) : null,
      };
    });
    try {
      const values = Array.from((await found.values.data()) as Float64Array);
      const squares = values.map((value) => value * value);
      const norm = Math.sqrt(squares.reduce((all, square) => all + square, 0));
      const weight = Math.sqrt(await found.weight.item());
      const isChanged = norm > kRounding * weight;
      changes.push({
        ...{ name: module.name, r: module.r },
        size: isChanged ? norm / weight : 0,
        stableRank: isChanged ? stableRankOf(values) : 0,
        ranks: energies.map((share) => (isChanged ? rankOfEnergy(squares, share) : 0)),
        intruders: await countOf(found.cosines),
      });
    } finally {
      for (const tensor of Object.values(found)) tensor?.dispose();
    }
    onProgress?.(changes.length, tuned.modules.length);
  }
  return changes;
}

async function countOf(cosines: Tensor | null): Promise<number | null> {
  if (cosines === null) return null;
  return intrudersOf(Array.from((await cosines.data()) as Float64Array)).length;
}

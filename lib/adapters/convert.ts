/**
 * Conversion of an adapter of any method to a plain LoRA: the leading singular triplets of what it changes in each weight, as PEFT's
 * convert_to_lora makes them. Its intruder dimensions can be reduced before (Shuttleworth et al. 2024), as by reduce_intruder_dimension
 * of PEFT.
 */
import { ArgumentError, UnsupportedError } from '../errors.ts';
import {
  abs,
  add,
  matmul,
  max,
  mul,
  reshape,
  slice,
  sqrt,
  sub,
  sum,
  svd,
  transpose,
} from '../ops/index.ts';
import {
  type CallTable,
  checkArgument,
  checkCall,
  finiteNumber,
  kCall,
  wholeNumber,
} from '../options/call.ts';
import { computeOwned, noGrad, scope, type Tensor, tensor } from '../tensor.ts';
import type { AdaptedLinear } from './adapted_linear.ts';
import { changeOf, convertObstacle, rankOfEnergy } from './changes.ts';
import { copyOf } from './copies.ts';
import { type ExportableAdapter, loraObstacle, type PlainPair, writeLora } from './export.ts';
import { masterDType, productOf } from './low_rank.ts';

/**
 * Options of {@link AdapterModel.convertToLora}: a rank for all modules, or a share of each one's energy. Without either, the ranks
 * are those of the adapter itself where a plain LoRA of these is exact, and otherwise those of an energy of 0.99.
 */
export interface ConvertOptions {
  /** Rank of every module, at most that of its weight. Not together with `energy`. */
  readonly rank?: number | undefined;
  /** Share of the squared singular values of each module's change that is kept, above 0 and at most 1; the ranks follow. */
  readonly energy?: number | undefined;
  /**
   * Factor of the intruder dimensions of the tuned weight, by PEFT's rule: those of its ten leading left singular vectors whose cosine with
   * every one of the base's is below 0.5. PEFT's default is 0.75. Default 1: they stay as they are.
   */
  readonly intruderFactor?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called after each module with the number of modules that are done, and of all. */
  readonly onProgress?: ((done: number, all: number) => void) | undefined;
}

const kTable: CallTable<ConvertOptions> = {
  rank: wholeNumber({ least: 1 }),
  energy: finiteNumber({ least: 0, above: true, most: 1 }),
  intruderFactor: finiteNumber({ least: 0, most: 1 }),
  signal: kCall.signal,
  onProgress: kCall.function,
};

/** A module of a conversion. */
export interface ConvertedModule {
  readonly name: string;
  /** Rank of its pair; 0 for a module that the adapter does not change, which is left out. */
  readonly r: number;
  /** ||change - B A||_F / ||change||_F. */
  readonly error: number;
  /** Number of intruder dimensions that were reduced. */
  readonly intruders: number;
}

/** The share of the squared singular values that is kept where neither a rank nor a share is given, and no pair is exact. */
export const DEFAULT_ENERGY = 0.99;

/** How the ranks of a conversion are chosen. */
export type RankChoice =
  | { readonly by: 'rank'; readonly rank: number }
  | { readonly by: 'energy'; readonly energy: number; readonly reason: string | null }
  | { readonly by: 'own' };

/**
 * How the ranks of a conversion are chosen; `reason`: why the adapter's own ranks are not, where nothing is given.
 * @throws ArgumentError for a rank together with an energy
 */
export function rankChoice(
  { modules }: Pick<ExportableAdapter, 'modules'>,
  { rank, energy, intruderFactor = 1 }: ConvertOptions,
): RankChoice {
  if (rank !== undefined && energy !== undefined) {
    throw new ArgumentError('convertToLora: give rank or energy, or neither of them');
  }
  if (rank !== undefined) return { by: 'rank', rank };
  if (energy !== undefined) return { by: 'energy', energy, reason: null };
  const reason =
    intruderFactor === 1
      ? (modules.map(ownRankObstacle).find((obstacle) => obstacle !== null) ?? null)
      : 'reduced intruder dimensions change its rank';
  return reason === null ? { by: 'own' } : { by: 'energy', energy: DEFAULT_ENERGY, reason };
}

/** The reason why no pair of the module's own rank equals its change of the base's weight; null: one does. */
function ownRankObstacle(module: AdaptedLinear): string | null {
  if (module.quantized === null) return loraObstacle(module);
  return 'the adapter is on a base of its own, whose codes have lost a part of each weight';
}

const kIntruders = { topK: 10, threshold: 0.5 };

/**
 * Writes an adapter as a plain LoRA, alpha the rank of each module, into a PEFT folder. Where the ranks are chosen, its A and B have
 * equal shares of the singular values. Modules that are saved whole are written as they are.
 * @param folder must not exist or be empty
 * @returns a line for each module
 * @throws ArgumentError with both a rank and an energy; UnsupportedError for an adapter that changes a bias
 */
export async function convertToLora(
  adapter: ExportableAdapter,
  folder: string,
  options: ConvertOptions = {},
): Promise<readonly ConvertedModule[]> {
  checkArgument('convertToLora: the folder', kCall.path, folder);
  checkCall('convertToLora', options, kTable);
  const { intruderFactor = 1, signal, onProgress } = options;
  const choice = rankChoice(adapter, options);
  for (const module of adapter.modules) {
    const obstacle = convertObstacle(module);
    if (obstacle !== null) throw new UnsupportedError(`${module.name}: ${obstacle}`);
  }
  const converted: ConvertedModule[] = [];
  const pairs: PlainPair[] = [];
  try {
    for (const module of adapter.modules) {
      signal?.throwIfAborted();
      const { pair, ...facts } =
        choice.by === 'own'
          ? ownPair(module)
          : await converting(module, { choice, intruderFactor });
      if (pair !== null) pairs.push({ name: module.name, pair, scale: 1 });
      converted.push({ name: module.name, ...facts });
      onProgress?.(converted.length, adapter.modules.length);
    }
  } catch (error) {
    for (const { pair } of pairs) for (const tensor of [pair.a, pair.b]) tensor.dispose();
    throw error;
  }
  const ranks = converted.map(({ r }) => r).sort((a, b) => a - b);
  await writeLora(adapter, folder, pairs, Math.max(1, ranks[ranks.length >> 1] ?? 1));
  return converted;
}

/** A module of a conversion with its pair, null where it changes nothing. */
type Conversion = Omit<ConvertedModule, 'name'> & { readonly pair: PlainPair['pair'] | null };

/** The pair that equals a module's adapter, with its scale in B. */
function ownPair(module: AdaptedLinear): Conversion {
  const plain = module.variant.toLora(module);
  const pair = computeOwned(() => {
    const { dtype } = plain.a;
    return { a: copyOf(plain.a), b: copyOf(mul(plain.b.to('f64'), module.scale).to(dtype)) };
  });
  module.release(plain);
  const [size, rest] = scope(() =>
    noGrad(() => {
      const change = changeOf(module);
      const difference = sub(change, productOf({ a: pair.a.to('f64'), b: pair.b.to('f64') }));
      return [change, difference].map((x) => Math.sqrt(sum(mul(x, x)).itemSync()));
    }),
  ) as [number, number];
  const r = pair.a.shape[0] as number;
  if (size > 0 && r > 0) return { pair, r, error: rest / size, intruders: 0 };
  for (const tensor of [pair.a, pair.b]) tensor.dispose();
  return { pair: null, r: 0, error: 0, intruders: 0 };
}

/** The leading triplets of a module's change as a pair. */
async function converting(
  module: AdaptedLinear,
  {
    choice,
    intruderFactor,
  }: {
    choice: Exclude<RankChoice, { by: 'own' }>;
    intruderFactor: number;
  },
): Promise<Conversion> {
  const { change, intruders } = await reducedChange(module, intruderFactor);
  const factors = computeOwned(() => svd(change));
  change.dispose();
  try {
    const values = Array.from((await factors.s.data()) as Float64Array);
    const squares = values.map((value) => value * value);
    const total = squares.reduce((sum, square) => sum + square, 0);
    if (total === 0) return { pair: null, r: 0, error: 0, intruders };
    const r =
      choice.by === 'energy'
        ? rankOfEnergy(squares, choice.energy)
        : Math.min(choice.rank, values.length);
    const rest = squares.slice(r).reduce((sum, square) => sum + square, 0);
    const dtype = masterDType(module.linear.weight.dtype);
    const pair = computeOwned(() => {
      const root = sqrt(slice(factors.s, 0, { stop: r }));
      const b = mul(slice(factors.u, 1, { stop: r }), root).to(dtype);
      const a = mul(slice(factors.vt, 0, { stop: r }), reshape(root, [r, 1])).to(dtype);
      return { a, b };
    });
    return { pair, r, error: Math.sqrt(rest / total), intruders };
  } finally {
    for (const tensor of Object.values(factors)) (tensor as Tensor).dispose();
  }
}

/** The adapter's change of the module's weight, f64, with its intruder dimensions multiplied by a factor. */
async function reducedChange(
  module: AdaptedLinear,
  factor: number,
): Promise<{ change: Tensor; intruders: number }> {
  const change = computeOwned(() => changeOf(module));
  if (factor === 1) return { change, intruders: 0 };
  const { topK, threshold } = kIntruders;
  const found = computeOwned(() => {
    const base = module.linear.weight.to('f64');
    const { u, s, vt } = svd(add(base, change));
    const leading = slice(u, 1, { stop: topK });
    const cosines = max(abs(matmul(transpose(leading), svd(base).u)), { axis: 1 });
    const right = mul(slice(vt, 0, { stop: topK }), reshape(slice(s, 0, { stop: topK }), [-1, 1]));
    return { cosines, leading, right };
  });
  try {
    const cosines = Array.from((await found.cosines.data()) as Float64Array);
    const reduced = cosines.map((cosine) => (cosine < threshold ? factor - 1 : 0));
    const intruders = reduced.filter((one) => one !== 0).length;
    if (intruders === 0) return { change, intruders };
    const less = computeOwned(() => {
      const columns = found.leading.shape[1] as number;
      const { device } = found.leading;
      const weights = tensor(reduced, { shape: [1, columns], dtype: 'f64', device });
      return add(change, matmul(mul(found.leading, weights), found.right));
    });
    change.dispose();
    return { change: less, intruders };
  } finally {
    for (const tensor of Object.values(found)) tensor.dispose();
  }
}

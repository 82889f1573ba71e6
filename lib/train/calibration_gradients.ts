/**
 * Calibration by the gradients of the weights (LoRA-GA): summed, as many of them at a time as fit into `maxBytes` (with the values of
 * weights in blocks, which are decoded for it), or sketched in two passes that never form one (Halko, Martinsson and Tropp 2011, section 4.3).
 *
 * The sketch takes what it needs from a pair B A beside each weight. At B = 0 the gradient of B is G A^T, so that a random A makes it a
 * sample of G's columns; with an orthonormal basis Q of these as B and A = 0, the gradient of A is Q^T G, whose singular triplets are G's,
 * as far as Q holds them.
 */
import { withAbort } from '../abort.ts';
import { ENERGY } from '../adapters/calibration.ts';
import { leadingTriplets } from '../adapters/leading_triplets.ts';
import { masterDType } from '../adapters/low_rank.ts';
import type {
  GradientCalibration,
  GradientTriplets,
  Statistics,
} from '../adapters/methods/method.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { ArgumentError, NativeError } from '../errors.ts';
import type { ComputedLoss } from '../losses/term.ts';
import type { Model } from '../models/index.ts';
import type { LinearAdapter, LinearUpdate } from '../nn/adapter_hook.ts';
import {
  add,
  concat,
  div,
  matmul,
  mul,
  qr,
  randn,
  reshape,
  type SvdFactors,
  slice,
  square,
  sub,
  sum,
  svd,
  zeros,
} from '../ops/index.ts';
import { clipNorm } from '../optim/clip.ts';
import { taskOf } from '../tasks/list.ts';
import { computeOwned, DTYPE_BYTES, scope, type Tensor } from '../tensor.ts';
import {
  batchesOf,
  type CalibratedLinear,
  type Found,
  inBatch,
  type Pass,
  partsWithin,
  reducedOf,
  settle,
  statisticsIn,
  tensorsOf,
} from './calibration_pass.ts';
import { resolveRegularizers } from './regularizers.ts';

/** Columns of a sketch for each triplet that is wanted. */
const kOversampling = 2;
/** Random rows by which the part of the gradient outside of a sketch is measured. */
const kProbes = 10;

/** Calibrates by the gradients of the weights. */
export async function byGradients(pass: Pass, calibration: GradientCalibration): Promise<Found> {
  const { modules } = pass;
  for (const module of modules) calibration.check?.(module);
  const inputOf = new Map(modules.map(({ name }) => [name, name]));
  const statistics =
    pass.settings.quick === true
      ? await bySketches(pass, calibration)
      : await bySums(pass, calibration);
  return { statistics, inputOf };
}

/** The triplets of a gradient, and the share of its squared norm that they hold. */
interface Measured {
  readonly triplets: GradientTriplets;
  readonly energy: Tensor; // (1)
}

/** The statistics of modules from the triplets of their gradients. */
function kept(
  calibration: GradientCalibration,
  modules: readonly CalibratedLinear[],
  measured: readonly Measured[],
): Statistics[] {
  const triplets = measured.map((one) => one.triplets);
  return calibration
    .reduce(modules, triplets)
    .map((own, i) => ({ ...own, [ENERGY]: measured[i]?.energy as Tensor }));
}

/** The share of a whole that the squares of singular values are, (1). */
const shareOf = (s: Tensor, whole: Tensor): Tensor => reshape(div(sum(square(s)), whole), [1]);

async function bySums(
  pass: Pass,
  calibration: GradientCalibration,
): Promise<Map<string, Statistics>> {
  const { modules, model, state } = pass;
  const wide = DTYPE_BYTES[masterDType(model.dtype)];
  const bytesOf = ({ weight: { encoding, dtype, size } }: CalibratedLinear): number =>
    (wide + (encoding === null ? 0 : DTYPE_BYTES[dtype])) * size;
  const parts = partsWithin(modules, bytesOf, pass.maxBytes);
  const { tensors = {}, counts = {} } = state.found ?? {};
  const statistics = statisticsIn(tensors);
  const { part: begun = 0 } = counts;
  for (const [at, part] of parts.entries()) {
    if (at < begun) continue;
    const leaves: Tensor[] = [];
    try {
      for (const module of part) leaves.push(leafOf(module));
      const isCut = at === begun;
      for (const [i, { name }] of isCut ? part.entries() : []) {
        (leaves[i] as Tensor).grad = tensors[`gradient|${name}`] ?? null;
        tensors[`gradient|${name}`]?.dispose();
      }
      const before = { batch: (isCut && counts.batch) || 0, count: (isCut && counts.count) || 0 };
      const count = await addGradients(pass, leaves, before, async (now) => {
        pass.onProgress(at * pass.count + now.batch, parts.length * pass.count);
        await state.after(() => ({
          tensors: {
            ...tensorsOf(statistics),
            ...Object.fromEntries(
              leaves.flatMap(({ grad }, i) =>
                grad === null ? [] : [[`gradient|${part[i]?.name}`, grad]],
              ),
            ),
          },
          counts: { part: at, ...now },
        }));
      });
      const sources = part.map((module, i) => ({ module, source: leaves[i] as Tensor }));
      const reduced = await reducedOf(
        sources,
        (some, weights) => {
          const means = weights.map((weight) => mul(weight.grad as Tensor, 1 / count));
          const found = leadingTriplets(
            some.map((module, i) => ({
              a: means[i] as Tensor,
              rank: calibration.count(module),
              seed: module.seed('svd'),
            })),
          );
          const measured = found.map((triplets, i) => ({
            triplets,
            energy: shareOf(triplets.s, sum(square(means[i] as Tensor))),
          }));
          return kept(calibration, some, measured);
        },
        pass.abort,
      );
      for (const [name, own] of reduced) statistics.set(name, own);
    } finally {
      for (const [i, leaf] of leaves.entries()) {
        leaf.requiresGrad = false;
        leaf.grad = null;
        const { linear, weight } = part[i] as CalibratedLinear;
        if (leaf === weight) continue;
        linear.adapter = null;
        leaf.dispose();
      }
    }
  }
  return statistics;
}

/** The tensor whose gradient is that of a weight: the weight, or its values in the place of its blocks, which no gradient is formed of. */
function leafOf({ linear, weight }: CalibratedLinear): Tensor {
  if (weight.encoding === null) return weight;
  const decoded = computeOwned(() => weight.to(weight.dtype));
  linear.adapter = { update: () => ({ weight: decoded, lowRank: [] }) };
  return decoded;
}

/** A pair beside a weight, for the gradient of one half of it. */
class SketchPair implements LinearAdapter {
  constructor(
    readonly a: Tensor, // (K,in)
    readonly b: Tensor, // (out,K)
  ) {}

  update(): LinearUpdate {
    return { lowRank: [{ a: this.a, b: this.b }] };
  }

  dispose(): void {
    for (const half of [this.a, this.b]) {
      half.grad = null;
      half.dispose();
    }
  }
}

async function bySketches(
  pass: Pass,
  calibration: GradientCalibration,
): Promise<Map<string, Statistics>> {
  const { modules, state } = pass;
  const { tensors = {}, counts = {} } = state.found ?? {};
  const columnsOf = (module: CalibratedLinear): number =>
    Math.min(kOversampling * calibration.count(module), ...[module.inFeatures, module.outFeatures]);
  /** Makes tensors of their own, on the module's device. */
  const made = (module: CalibratedLinear, body: () => Tensor): Tensor =>
    computeOwned(() => body().to(masterDType(module.weight.dtype)));
  /** Runs a pass with pairs beside the weights; what is read are the gradients of their halves `half`. */
  const gradients = async (
    index: number,
    half: 'a' | 'b',
    pairs: readonly SketchPair[],
    bases: Readonly<Record<string, Tensor>>,
  ): Promise<Tensor[]> => {
    const isCut = (counts.pass ?? 0) === index;
    const leaves = pairs.map((pair) => pair[half]);
    for (const [i, leaf] of leaves.entries()) {
      const key = `sketch|${modules[i]?.name}`;
      if (!isCut || tensors[key] === undefined) continue;
      leaf.grad = tensors[key];
      tensors[key].dispose();
    }
    const before = { batch: (isCut && counts.batch) || 0, count: (isCut && counts.count) || 0 };
    for (const [i, { linear }] of modules.entries()) linear.adapter = pairs[i] as SketchPair;
    try {
      const count = await addGradients(pass, leaves, before, async (now) => {
        pass.onProgress(index * pass.count + now.batch, 2 * pass.count);
        await state.after(() => ({
          tensors: {
            ...bases,
            ...Object.fromEntries(
              leaves.flatMap(({ grad }, i) =>
                grad === null ? [] : [[`sketch|${modules[i]?.name}`, grad]],
              ),
            ),
          },
          counts: { pass: index, ...now },
        }));
      });
      return computeOwned(() => leaves.map(({ grad }) => mul(grad as Tensor, 1 / count)));
    } finally {
      for (const { linear } of modules) linear.adapter = null;
      for (const leaf of leaves) leaf.requiresGrad = false;
    }
  };
  const owned: { dispose(): void }[] = [];
  const own = <T extends { dispose(): void }>(value: T): T => {
    owned.push(value);
    return value;
  };
  try {
    let bases: Tensor[]; // (out,columns), orthonormal
    if ((counts.pass ?? 0) === 0) {
      const pairs = modules.map((module) => {
        const { inFeatures, outFeatures, seed } = module;
        const columns = columnsOf(module);
        const random = () => randn([columns, inFeatures], { seed: seed('sketch') });
        return own(
          new SketchPair(
            made(module, random),
            made(module, () => zeros([outFeatures, columns])),
          ),
        );
      });
      const samples = (await gradients(0, 'b', pairs, {})).map(own);
      bases = samples.map((sample, i) =>
        own(made(modules[i] as CalibratedLinear, () => qr(sample.to('f64')).q)),
      );
    } else {
      bases = modules.map(({ name }) => own(tensors[`basis|${name}`] as Tensor));
    }
    // Random columns beside each basis: their rows of the result measure what the basis does not hold.
    const pairs = modules.map((module, i) => {
      const { inFeatures, outFeatures, seed } = module;
      const basis = bases[i] as Tensor;
      const columns = (basis.shape[1] as number) + kProbes;
      const probes = () => randn([outFeatures, kProbes], { seed: seed('probe') });
      return own(
        new SketchPair(
          made(module, () => zeros([columns, inFeatures])),
          made(module, () => concat([basis, probes()], 1)),
        ),
      );
    });
    const named = Object.fromEntries(
      modules.map(({ name }, i) => [`basis|${name}`, bases[i] as Tensor]),
    );
    const images = (await gradients(1, 'a', pairs, named)).map(own);
    const sources = modules.map((module, i) => ({
      module,
      source: {
        image: images[i] as Tensor,
        pair: pairs[i] as SketchPair,
        basis: bases[i] as Tensor,
      },
    }));
    return await reducedOf(
      sources,
      (some, sketches) => {
        const measured = some.map((module, i) => {
          const { image, pair, basis } = sketches[i] as (typeof sources)[number]['source'];
          return tripletsOf({ image, basis, left: pair.b }, calibration.count(module));
        });
        return kept(calibration, some, measured);
      },
      pass.abort,
    );
  } finally {
    for (const value of owned) value.dispose();
  }
}

/**
 * The triplets of a gradient G within a basis Q.
 * @param sketch image [Q Z]^T G; basis Q (out,K); left [Q Z], where Z (out,P) is random. |G|^2 is estimated as |Q^T G|^2 + |Z^T (G - Q Q^T G)|^2 / P
 */
function tripletsOf(
  { image, basis, left }: { image: Tensor; basis: Tensor; left: Tensor },
  count: number,
): Measured {
  const columns = basis.shape[1] as number;
  const wide = image.to('f64');
  const inside = slice(wide, 0, { stop: columns }); // Q^T G
  const random = slice(left, 1, { start: columns }).to('f64'); // Z
  const q = basis.to('f64');
  const within = matmul(matmul(random, q, { transposeA: true }), inside);
  const outside = sub(slice(wide, 0, { start: columns }), within);
  const whole = add(sum(square(inside)), mul(sum(square(outside)), 1 / kProbes));
  const { u, s, vt } = svd(inside) as SvdFactors;
  const stop = count;
  const triplets = {
    u: matmul(q, slice(u, 1, { stop })).to('f32'),
    s: slice(s, 0, { stop }),
    vt: slice(vt, 0, { stop }),
  };
  return {
    triplets: { ...triplets, s: triplets.s.to('f32'), vt: triplets.vt.to('f32') },
    energy: shareOf(triplets.s, whole),
  };
}

/** Number of micro-batches that were read, and of those among them that have a loss. */
interface Counted {
  readonly batch: number;
  readonly count: number;
}

/**
 * Adds the gradients of the micro-batches' mean losses for some leaves.
 * @param before what a calibration that was cut off had read
 * @returns the number of micro-batches that have a loss
 * @throws ArgumentError where none has
 */
export async function addGradients(
  pass: Pick<Pass, 'model' | 'batches' | 'count'> & Partial<Pick<Pass, 'abort'>>,
  leaves: readonly Tensor[],
  before: Counted,
  onBatch: (now: Counted) => Promise<void>,
): Promise<number> {
  const { model, abort } = pass;
  const task = taskOf(model);
  const settings = { terms: [], regularizers: { ...resolveRegularizers({}, task.name) } };
  const objective = task.objective(untuned(model), settings);
  let { batch, count } = before;
  try {
    for await (const read of batchesOf(pass, batch)) {
      const micro = { ...task.select(read, settings.regularizers), index: 0 };
      if (!objective.skips(micro)) {
        for (const leaf of leaves) leaf.requiresGrad = true;
        const step = { step: 0, totalSteps: 1, weights: {}, totals: micro.counts };
        await inBatch(batch, async () => {
          scope(() =>
            withAbort(abort, () => {
              const inputs = objective.prepare(micro, step, {});
              const computed = objective.losses(inputs, objective.forward(inputs));
              (computed as ComputedLoss).loss?.backward();
            }),
          );
          for (const leaf of leaves) leaf.requiresGrad = false;
          await refuseNotFinite(leaves);
        });
        count++;
      }
      await settle(abort);
      batch++;
      await onBatch({ batch, count });
    }
    if (count > 0) return count;
    throw new ArgumentError(
      'calibrate: no micro-batch has a supervised token, so that there is no gradient; raise maxLength above the length of the prompts',
    );
  } finally {
    objective.dispose();
  }
}

/** Refuses gradients that are not finite. @throws NativeError (`ERR_NOT_FINITE`) */
async function refuseNotFinite(leaves: readonly Tensor[]): Promise<void> {
  const { norm } = await clipNorm(leaves, { maxNorm: 0 });
  if (Number.isFinite(norm)) return;
  throw new NativeError(`the norm of the gradients is ${norm}`, { code: 'ERR_NOT_FINITE' });
}

/** A model as a loss reads it, without anything that is tuned. */
function untuned(model: Model): TunedModel<Model> {
  const refuse = (): never => {
    throw new ArgumentError('calibrate: a model that is calibrated has no teacher');
  };
  return {
    ...{ model, kind: 'full', trainsHead: false, hasTeacher: false, teacherBytes: 0 },
    graphObstacle: null,
    parameters: () => [],
    ...{ collectGradients: () => {}, zeroGradients: () => {}, trainingPass: () => {} },
    ...{ afterStep: () => {}, state: () => ({}), restore: () => {}, identity: () => ({}) },
    ...{ checkForm: () => {}, withTeacher: refuse, savePretrained: refuse, dispose: () => {} },
  };
}

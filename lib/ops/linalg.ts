// Matrix decompositions. They are computed in f64 and rounded once: f32 would drown singular values below 3e-4 of
// the largest wherever a Gram matrix is involved. randomizedSvd alone has a quicker way for weights (docs/performance-log.md).
import { ArgumentError } from '../errors.ts';
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { shown } from '../shown.ts';
import { Tensor } from '../tensor.ts';

/**
 * A = Q R, thin, with a non-negative diagonal of R. Q is orthonormal also for rank-deficient A.
 * @param a (M, N), any float dtype; K = min(M, N). The gradient needs M >= N.
 * @returns q (M, K) and r (K, N), of a's dtype
 */
export function qr(a: Tensor): { q: Tensor; r: Tensor } {
  const [q, r] = native.qr(a.handle);
  return { q: new Tensor(q), r: new Tensor(r) };
}

/**
 * Eigenvalues and eigenvectors of a symmetric matrix (its lower triangle is read). Vectors of equal eigenvalues have no
 * gradient; theirs counts as 0.
 * @param a (N, N), any float dtype
 * @returns values (N), ascending, in f32 (f64 for f64); vectors (N, N), one a column
 */
export function eigh(a: Tensor): { values: Tensor; vectors: Tensor } {
  const [values, vectors] = native.eigh(a.handle);
  return { values: new Tensor(values), vectors: new Tensor(vectors) };
}

/** A = U diag(s) V^T, singular values in falling order. */
export interface SvdFactors {
  /** (M, K), left singular vectors in columns. */
  u: Tensor;
  /** (K), descending. */
  s: Tensor;
  /** (K, N), right singular vectors in rows. */
  vt: Tensor;
}

/**
 * The thin singular value decomposition a = u diag(s) vt.
 * @param a (M, N), any float dtype; K = min(M, N)
 */
export function svd(a: Tensor): SvdFactors {
  const [u, s, vt] = native.svd(a.handle);
  return { u: new Tensor(u), s: new Tensor(s), vt: new Tensor(vt) };
}

/**
 * The singular values of a (M, N), descending, in f32 (f64 for f64). Their gradient U diag(ds) Vt is defined where that
 * of the vectors is not (equal values), so take this where the vectors are not needed.
 */
export function singularValues(a: Tensor): Tensor {
  return new Tensor(native.singularValues(a.handle));
}

/** How {@link randomizedSvd} and {@link randomizedSvds} look for the factors. */
export interface SvdSearch {
  /**
   * Power iterations, at most 1000 (what is captured is no less than they would), or 'converged' (default): a block
   * Krylov method until ||A - U S Vt||_F is within optimum * (1 + 1e-5) + 1e-6 ||A||_F.
   */
  niter?: number | 'converged';
  /** Columns beyond the rank. Default 10. */
  oversample?: number;
}

/** Options of {@link randomizedSvd}. */
export interface RandomizedSvdOptions extends SvdSearch {
  /** Seed of the random test matrix (Philox). Default 0. */
  seed?: number;
}

/** One matrix of {@link randomizedSvds} or {@link trailingSvds}. */
export interface SvdTask {
  /** (M, N), any float dtype. */
  a: Tensor;
  /** R, 1..min(M, N). */
  rank: number;
  /** Seed of the random test matrix (Philox). Default 0. */
  seed?: number;
}

/**
 * The leading singular triplets of a (M, N) after Halko, Martinsson and Tropp (2011). Has no gradient: an input that
 * wants one is an ArgumentError. f64 is computed in f64; weights of lower precision from min(M, N) = 128 on in f32 with
 * rough iterations in bf16 before, unless what is found is too small for that (sigma_R below 1e-3 sigma_1, or less than
 * 5 % of the norm left over), which is then computed in f64 as well.
 * @param rank R, 1..min(M, N)
 * @returns u (M, R), s (R), vt (R, N), in f32 (f64 for f64)
 */
export function randomizedSvd(
  a: Tensor,
  rank: number,
  options: RandomizedSvdOptions = {},
): SvdFactors {
  const { seed = 0, ...search } = checkKeys('randomizedSvd', options, 'niter oversample seed');
  return randomizedSvds([{ a, rank, seed }], search)[0] as SvdFactors;
}

/**
 * {@link randomizedSvd} of any number of matrices, with the same results. On the CPU each thread takes small matrices
 * of its own, which is about twice as quick on two threads as one matrix after the other.
 */
export function randomizedSvds(tasks: readonly SvdTask[], options: SvdSearch = {}): SvdFactors[] {
  checkKeys('randomizedSvds', options, 'niter oversample');
  const { niter = 'converged', oversample = 10 } = options;
  if (niter !== 'converged' && !(niter >= 0)) {
    throw new ArgumentError(
      `randomizedSvd: niter must be >= 0 or 'converged', got ${shown(niter)}`,
    );
  }
  return factorsOf(
    native.randomizedSvds(
      tasks.map(({ a }) => a.handle),
      tasks.map(({ rank }) => rank),
      niter === 'converged' ? -1 : niter,
      oversample,
      tasks.map(({ seed = 0 }) => seed),
    ),
  );
}

/**
 * The last R singular triplets of each matrix, without a complete decomposition of it: the leading eigenvectors of (A^T A)^-1, found by
 * subspace iteration in f64 until |(A^T A)^-1 v - v / s^2| is within 1e-8 of 1 / s^2. A matrix with fewer than 160 rows or columns, one with
 * less than four times R + max(R, 16) of them, and one that is singular to f64's precision are decomposed completely. Has no gradient: an
 * input that wants one is an ArgumentError. On the CPU each thread takes matrices of its own.
 * @returns u (M, R), s (R), descending, vt (R, N) of each, in f32 (f64 for f64)
 * @since 0.2.0
 */
export function trailingSvds(tasks: readonly SvdTask[]): SvdFactors[] {
  return factorsOf(
    native.trailingSvds(
      tasks.map(({ a }) => a.handle),
      tasks.map(({ rank }) => rank),
      tasks.map(({ seed = 0 }) => seed),
    ),
  );
}

type NativeFactors = ReturnType<typeof native.randomizedSvds>;

function factorsOf(found: NativeFactors): SvdFactors[] {
  return found.map(([u, s, vt]) => ({
    u: new Tensor(u),
    s: new Tensor(s),
    vt: new Tensor(vt),
  }));
}

/** The principal components of the rows of an analysis so far, f32. */
export interface PcaState {
  /**
   * (P, C), orthonormal: the R components in falling order, each with its largest element positive, and behind them vectors with which the
   * next search begins (on the CPU; 0 on others). P is R where C is less than four times R.
   */
  vectors: Tensor;
  /** (R), singular values of the centred rows, descending. */
  singular: Tensor;
  /** (C), mean of the rows. */
  mean: Tensor;
  /** (1), sum of squares of the centred rows. */
  scatter: Tensor;
  /** (R), share of each component in it. */
  ratios: Tensor;
  /** (R), cosine of each component with the one before the last update; 0 after the first. */
  cosines: Tensor;
}

/** The update of an analysis by more rows; see {@link pcaUpdates}. */
export interface PcaTask {
  /** (N, C), any float dtype; R rows at least. */
  x: Tensor;
  /** Number of components R, 1..min(N, C). */
  rank: number;
  /** The analysis so far and the number of its rows; left out: it begins. */
  before?: PcaState & { count: number };
  /** Seed of the random vectors of the search (Philox). Default 0. */
  seed?: number;
}

/**
 * Incremental principal component analyses (Ross et al. 2008), any number in one call: the components of all rows so far, from the R
 * components before, the new rows less their mean and the correction of the mean. Each is a singular vector of these within 1e-2:
 * |A^T A v - s^2 v| <= 1e-2 s^2 (on the CPU, where min(N, C) is above 128), or as exact as {@link randomizedSvd} and {@link svd} are. On
 * the CPU each thread takes analyses of its own. Has no gradient: an input that wants one is an ArgumentError.
 * @since 0.2.0
 */
export function pcaUpdates(tasks: readonly PcaTask[]): PcaState[] {
  const first = tasks.filter(({ before }) => before === undefined);
  const later = tasks.filter(({ before }) => before !== undefined);
  const found = new Map([...updated(first), ...updated(later)]);
  return tasks.map((task) => found.get(task) as PcaState);
}

/** The states of tasks of which all or none have one before. */
function updated(tasks: readonly PcaTask[]): [PcaTask, PcaState][] {
  const before = tasks.flatMap((task) => task.before ?? []);
  const known = (name: keyof PcaState) => before.map((state) => state[name].handle);
  const results = native.pcaUpdates(
    tasks.map(({ x }) => x.handle),
    tasks.map(({ rank }) => rank),
    tasks.map(({ seed = 0 }) => seed),
    tasks.map((task) => task.before?.count ?? 0),
    known('vectors'),
    known('singular'),
    known('mean'),
    known('scatter'),
  );
  return results.map((handles, i) => {
    const [vectors, singular, mean, scatter, ratios, cosines] = handles.map(
      (handle) => new Tensor(handle),
    ) as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
    return [tasks[i] as PcaTask, { vectors, singular, mean, scatter, ratios, cosines }];
  });
}

/** a^T a (C, C) in f64 for a (N, C), summed in f64. Has no gradient. */
export function gram(a: Tensor): Tensor {
  return new Tensor(native.gram(a.handle));
}

/** g += a^T a in place, for g (C, C) f64 and a (N, C). */
export function gramAdd(g: Tensor, a: Tensor): void {
  native.gramAdd(g.handle, a.handle);
}

/**
 * g += X^T X in place, where X is a with each row multiplied by its scale. Products of f32 (bf16 as it is) are summed in f32 over at most
 * 256 rows, these sums in f64; a device may do all of it in f64, as it is done for f64.
 * @param g (C,C) f64
 * @param a (N,C), any float dtype
 * @param scale (N) f32; bf16 is fastest where neighbouring rows have the same
 */
export function scaledGramAdd(g: Tensor, a: Tensor, scale: Tensor): void {
  native.scaledGramAdd(g.handle, a.handle, scale.handle);
}

/**
 * The singular values (C) f64, descending, of H W^T from the two factors' Gram matrices: of all logits of an evaluation
 * without one of them being kept.
 * @param m H^T H (C, C) f64
 * @param g W^T W (C, C) f64
 */
export function gramSpectrum(m: Tensor, g: Tensor): Tensor {
  return new Tensor(native.gramSpectrum(m.handle, g.handle));
}

// qr, eigh, svd and randomizedSvd against the golden decompositions (tolerances: ../fixtures/linalg), gradients in f64.
import { describe, expect, it } from 'vitest';
import { ArgumentError } from '../../lib/errors.ts';
import { zeros } from '../../lib/ops/create.ts';
import { add, concat, matmul, mean, mul, reshape, square, sub, sum } from '../../lib/ops/index.ts';
import {
  eigh,
  gram,
  gramAdd,
  gramSpectrum,
  type PcaState,
  type PcaTask,
  pcaUpdates,
  qr,
  randomizedSvd,
  randomizedSvds,
  type SvdFactors,
  scaledGramAdd,
  singularValues,
  svd,
  trailingSvds,
} from '../../lib/ops/linalg.ts';
import { slice, transpose as swapped } from '../../lib/ops/shape.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { fixturePath, goldenTensor, readJson, relativeError } from '../support/fixtures.ts';
import { goldenArrays } from '../support/golden.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

interface SvdCase {
  name: string;
  M: number;
  N: number;
  r: number;
  relative_gap_at_r: number;
  best_rank_r_rel_error: number;
  svd_lowrank_f32?: { niter: number; q: number; rel_error: number[] }[];
}
interface EighCase {
  name: string;
  n: number;
  k: number;
  relative_gap_at_k: number;
  has_projector: boolean;
}
interface PissaCase {
  name: string;
  r: number;
  scale: number;
}

const cases = readJson(fixturePath('linalg/linalg.json')) as {
  svd: SvdCase[];
  eigh: EighCase[];
  pissa: PissaCase[];
};
const arrays = goldenArrays(fixturePath('linalg/linalg.safetensors'));
const dtypes = ['f32', 'f64'] as const;

const valuesOf = (t: Tensor): Float64Array => Float64Array.from(t.dataSync() as Float64Array);
const array = (name: string) => {
  const found = arrays.get(name);
  if (!found) throw new Error(`no golden array ${name}`);
  return found;
};
const plain = (name: string): Float64Array =>
  Float64Array.from(array(name).data as ArrayLike<number>, Number);

/** The product of (m,k) and (k,n) matrices, row-major. */
function multiply(a: ArrayLike<number>, b: ArrayLike<number>, m: number, k: number, n: number) {
  const c = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    for (let p = 0; p < k; p++) {
      const x = a[i * k + p] as number;
      for (let j = 0; j < n; j++)
        c[i * n + j] = (c[i * n + j] as number) + x * (b[p * n + j] as number);
    }
  }
  return c;
}

function transpose(a: ArrayLike<number>, m: number, n: number): Float64Array {
  return Float64Array.from(
    { length: m * n },
    (_, i) => a[(i % m) * n + Math.floor(i / m)] as number,
  );
}

function scaleColumns(a: Float64Array, s: ArrayLike<number>): Float64Array {
  return a.map((value, i) => value * (s[i % s.length] as number));
}

function leadingColumns(a: Float64Array, m: number, n: number, count: number): Float64Array {
  return Float64Array.from(
    { length: m * count },
    (_, i) => a[Math.floor(i / count) * n + (i % count)] as number,
  );
}

const frobenius = (a: ArrayLike<number>): number =>
  Math.sqrt(Array.from(a).reduce((s, v) => s + v * v, 0));
const difference = (a: ArrayLike<number>, b: ArrayLike<number>): Float64Array =>
  Float64Array.from(a, (v, i) => v - (b[i] as number));

/** Deviation from orthonormal columns: max |Q^T Q - I|. */
function orthogonality(q: Float64Array, m: number, k: number): number {
  const gramMatrix = multiply(transpose(q, m, k), q, k, m, k);
  return Math.max(...gramMatrix.map((v, i) => Math.abs(v - (i % (k + 1) === 0 ? 1 : 0))));
}

describe.each(dtypes)('svd in %s', (dtype) => {
  it.each(cases.svd)('$name', ({ name, M, N, r, relative_gap_at_r: gap }) => {
    const k = Math.min(M, N);
    const { u, s, vt } = scope(() => svd(goldenTensor(array(`${name}/A`), dtype)));
    const [us, ss, vs] = [valuesOf(u), valuesOf(s), valuesOf(vt)];
    const reference = plain(`${name}/s`);
    const largest = reference[0] as number;
    const sTolerance = (dtype === 'f64' ? 1e-10 : 2e-6) * largest;
    ss.forEach((value, i) => {
      expect(Math.abs(value - (reference[i] as number))).toBeLessThanOrEqual(sTolerance);
    });
    const exact = dtype === 'f64' ? 1e-12 : 1e-5;
    expect(orthogonality(us, M, k)).toBeLessThanOrEqual(exact);
    expect(orthogonality(transpose(vs, k, N), N, k)).toBeLessThanOrEqual(exact);
    const A = plain(`${name}/A`);
    const back = multiply(scaleColumns(us, ss), vs, M, k, N);
    expect(frobenius(difference(A, back))).toBeLessThanOrEqual(
      (dtype === 'f64' ? 1e-13 : 2e-6) * frobenius(A),
    );
    const projected = arrays.get(`${name}/PuX`);
    if (!projected) return;
    const lead = leadingColumns(us, M, k, r);
    const PuX = multiply(
      lead,
      multiply(transpose(lead, M, r), plain(`${name}/X`), r, M, 4),
      M,
      r,
      4,
    );
    const tolerance = dtype === 'f64' ? Math.max(1e-13 / gap, 1e-11) : 1e-5 / gap;
    expect(
      frobenius(difference(PuX, projected.data as Float64Array)) / frobenius(plain(`${name}/X`)),
    ).toBeLessThanOrEqual(tolerance);
  });
});

describe.each(dtypes)('qr in %s', (dtype) => {
  it.each(cases.svd)('$name', ({ name, M, N }) => {
    const k = Math.min(M, N);
    const { q, r } = scope(() => qr(goldenTensor(array(`${name}/A`), dtype)));
    const [qs, rs] = [valuesOf(q), valuesOf(r)];
    const A = plain(`${name}/A`);
    expect(orthogonality(qs, M, k)).toBeLessThanOrEqual(dtype === 'f64' ? 1e-12 : 1e-5);
    expect(frobenius(difference(A, multiply(qs, rs, M, k, N)))).toBeLessThanOrEqual(
      (dtype === 'f64' ? 1e-13 : 2e-6) * frobenius(A),
    );
    const absR = arrays.get(`${name}/absR`);
    if (absR)
      expect(relativeError(rs, absR.data as Float64Array)).toBeLessThanOrEqual(
        dtype === 'f64' ? 1e-10 : 1e-5,
      );
  });
});

describe.each(dtypes)('eigh in %s', (dtype) => {
  it.each(cases.eigh)('$name', ({ name, n, k, relative_gap_at_k: gap, has_projector }) => {
    const { values, vectors } = scope(() => eigh(goldenTensor(array(`${name}/K`), dtype)));
    const reference = plain(`${name}/w`);
    const largest = Math.max(...reference.map(Math.abs));
    valuesOf(values).forEach((value, i) => {
      expect(Math.abs(value - (reference[i] as number))).toBeLessThanOrEqual(
        (dtype === 'f64' ? 1e-12 : 5e-6) * largest,
      );
    });
    const v = valuesOf(vectors);
    expect(orthogonality(v, n, n)).toBeLessThanOrEqual(dtype === 'f64' ? 1e-12 : 1e-5);
    if (!has_projector) return;
    const lead = Float64Array.from(
      { length: n * k },
      (_, i) => v[Math.floor(i / k) * n + n - k + (i % k)] as number,
    );
    const X = plain(`${name}/X`);
    const PX = multiply(lead, multiply(transpose(lead, n, k), X, k, n, 3), n, k, 3);
    expect(frobenius(difference(PX, plain(`${name}/PX`))) / frobenius(X)).toBeLessThanOrEqual(
      (dtype === 'f64' ? 1e-12 : 1e-5) / gap,
    );
  });
});

function lowRankError(
  A: Float64Array,
  [m, n, r]: [number, number, number],
  f: { u: Tensor; s: Tensor; vt: Tensor },
) {
  const back = multiply(scaleColumns(valuesOf(f.u), valuesOf(f.s)), valuesOf(f.vt), m, r, n);
  const norm = frobenius(A);
  return norm > 0 ? frobenius(difference(A, back)) / norm : frobenius(back);
}

describe('randomizedSvd', () => {
  it.each(cases.svd)('is no further from the optimum than the oversampled baseline: $name', (c) => {
    const A = plain(`${c.name}/A`);
    for (const { niter, q, rel_error } of c.svd_lowrank_f32 ?? []) {
      if (q === c.r && Math.min(c.M, c.N) > c.r) continue;
      const factors = scope(() =>
        randomizedSvd(goldenTensor(array(`${c.name}/A`), 'f32'), c.r, {
          niter,
          oversample: 8,
          seed: 5,
        }),
      );
      const excess = lowRankError(A, [c.M, c.N, c.r], factors) - c.best_rank_r_rel_error;
      const baseline = Math.max(...rel_error) - c.best_rank_r_rel_error;
      expect(excess, `niter ${niter}`).toBeLessThanOrEqual(Math.max(1.5 * baseline, 1e-6));
    }
  });

  it.each(dtypes.flatMap((dtype) => cases.svd.map((c) => ({ ...c, dtype }))))(
    'converges to the optimum: $name in $dtype',
    (c) => {
      const factors = scope(() =>
        randomizedSvd(goldenTensor(array(`${c.name}/A`), c.dtype), c.r, { seed: 5 }),
      );
      const error = lowRankError(plain(`${c.name}/A`), [c.M, c.N, c.r], factors);
      expect(error).toBeLessThanOrEqual(c.best_rank_r_rel_error * (1 + 1e-5) + 1e-6);
      expect(Array.from(valuesOf(factors.u)).every(Number.isFinite)).toBe(true);
    },
  );

  it('is deterministic for a seed, accepts bf16, and refuses bad arguments', () => {
    const a = randomTensor([40, 60], { dtype: 'f32' });
    const first = randomizedSvd(a, 5, { niter: 2, seed: 9 });
    const second = randomizedSvd(a, 5, { niter: 2, seed: 9 });
    expect(valuesOf(first.u)).toEqual(valuesOf(second.u));
    const half = randomizedSvd(a.to('bf16'), 5);
    expect(half.u.dtype).toBe('f32');
    expect(relativeError(valuesOf(half.s), valuesOf(randomizedSvd(a, 5).s))).toBeLessThan(1e-2);
    expect(() => randomizedSvd(a, 41)).toThrow(/rank must be 1..40/);
    expect(() => randomizedSvd(a, 0)).toThrow(/rank/);
    expect(() => randomizedSvd(a, 3, { niter: -2 })).toThrow(/niter/);
    expect(() => randomizedSvd(a, 3, { niter: 1001 })).toThrow(
      /niter must be at most 1000, got 1001/,
    );
    expect(() => randomizedSvd(randomTensor([4, 4], { requiresGrad: true }), 2)).toThrow(
      /gradient/,
    );
    expect(() =>
      randomizedSvds([
        { a, rank: 3 },
        { a, rank: 41 },
      ]),
    ).toThrow(/rank must be 1..40/);
    expect(() => svd(tensor([1, 2, 3]))).toThrow(/dimension/);
    expect(() => eigh(randomTensor([3, 4]))).toThrow(/\(N,N\)/);
  });
});

describe.each([
  ['bf16', 2 ** -8],
  ['f16', 2 ** -11],
] as const)('decompositions of %s', (dtype, unit) => {
  // The expected result is computed in f64 from the same rounded operand.
  const [m, n] = [31, 9];
  const narrow = randomTensor([m, n], { seed: 11 }).to(dtype);
  const wide = narrow.to('f64');
  const A = valuesOf(wide);

  it('qr returns that dtype, within one rounding of the result in f64', () => {
    const found = qr(narrow);
    const expected = qr(wide);
    for (const key of ['q', 'r'] as const) {
      expect([found[key].dtype, found[key].shape]).toEqual([dtype, expected[key].shape]);
      const values = valuesOf(expected[key]);
      valuesOf(found[key]).forEach((value, i) => {
        const exact = values[i] as number;
        // Half a unit in the last place, or the smallest step of f16 near zero.
        expect(Math.abs(value - exact)).toBeLessThanOrEqual(
          unit * Math.abs(exact) * 1.001 + 2 ** -25,
        );
      });
    }
  });

  it('svd, singularValues and eigh return values in f32, and factors that multiply to the matrix', () => {
    const { u, s, vt } = svd(narrow);
    const reference = valuesOf(svd(wide).s);
    expect([s.dtype, singularValues(narrow).dtype]).toEqual(['f32', 'f32']);
    expect(relativeError(valuesOf(s), reference)).toBeLessThan(1e-7);
    expect(relativeError(valuesOf(singularValues(narrow)), reference)).toBeLessThan(1e-7);
    const back = multiply(scaleColumns(valuesOf(u), valuesOf(s)), valuesOf(vt), m, n, n);
    // At worst the factors are in the narrow dtype, which rounds each entry twice.
    expect(relativeError(back, A)).toBeLessThan(2 * unit);

    const symmetric = noGrad(() => gram(narrow)).to(dtype);
    const { values, vectors } = eigh(symmetric);
    expect(values.dtype).toBe('f32');
    expect(
      relativeError(valuesOf(values), valuesOf(eigh(symmetric.to('f64')).values)),
    ).toBeLessThan(1e-7);
    const V = valuesOf(vectors);
    const rebuilt = multiply(scaleColumns(V, valuesOf(values)), transpose(V, n, n), n, n, n);
    expect(relativeError(rebuilt, valuesOf(symmetric))).toBeLessThan(2 * unit);
  });
});

describe('bad arguments of decompositions', () => {
  const whole = tensor(Int32Array.of(1, 2, 3, 4), { shape: [2, 2] });
  const cube = randomTensor([2, 2, 2]);
  it.each([
    ['qr', qr, 'qr'],
    ['eigh', eigh, 'eigh'],
    ['svd', svd, 'svd'],
    ['singularValues', singularValues, 'singular_values'],
  ] as const)('%s', (_, f, op) => {
    const call = f as (a: Tensor) => unknown;
    for (const a of [tensor([1, 2, 3]), cube]) {
      expect(() => call(a)).toThrow(new RegExp(`^${op}: .*2 dimensions`));
    }
    expect(() => call(whole)).toThrow(new RegExp(`^${op}: .*i32`));
    expect(() => call(whole)).toThrow(ArgumentError);
  });
  it('of eigh include a matrix that is not square', () => {
    expect(() => eigh(randomTensor([3, 4]))).toThrow(/^eigh: .*\(N,N\).*\(3,4\)/);
  });
});

describe('pcaUpdates', () => {
  /** Batches of rows around a mean, with a spectrum that falls. */
  const rowsOf = (n: number, c: number, seed: number): Tensor =>
    scope(() => {
      const spread = randomTensor([40, c], { dtype: 'f64', seed: 77 });
      const weights = tensor(Float64Array.from({ length: 40 }, (_, k) => 3 / (1 + k)));
      const parts = matmul(mul(randomTensor([n, 40], { dtype: 'f64', seed }), weights), spread);
      const noise = mul(randomTensor([n, c], { dtype: 'f64', seed: seed + 50 }), 0.1);
      return add(add(parts, noise), randomTensor([c], { dtype: 'f64', seed: 78 }));
    });

  interface Plain {
    readonly vt: Tensor;
    readonly s: Tensor;
    readonly mean: Tensor;
    readonly scatter: number;
    readonly count: number;
  }

  /** The definition, in f64. */
  function plain(x: Tensor, rank: number, before: Plain | null): Plain {
    const n = x.shape[0] as number;
    const own = mean(x, { axis: 0 });
    const centred = sub(x, own);
    const spread = sum(square(centred)).dataSync()[0] as number;
    const firstOf = (a: Tensor) => {
      const { s, vt } = svd(a);
      return { s: slice(s, 0, { stop: rank }), vt: slice(vt, 0, { stop: rank }) };
    };
    if (before === null) return { ...firstOf(centred), mean: own, scatter: spread, count: n };
    const total = before.count + n;
    const step = sub(own, before.mean);
    const shift = mul(step, Math.sqrt((before.count / total) * n));
    const earlier = mul(before.vt, reshape(before.s, [rank, 1]));
    const moved = sum(square(shift)).dataSync()[0] as number;
    return {
      ...firstOf(concat([earlier, centred, reshape(shift, [1, -1])])),
      mean: add(before.mean, mul(step, n / total)),
      scatter: before.scatter + spread + moved,
      count: total,
    };
  }

  const near = (found: Tensor, expected: ArrayLike<number>, tolerance: number): void => {
    const values = valuesOf(found);
    expect(values.length).toBe(expected.length);
    const most = Math.max(...Array.from(expected, Math.abs));
    for (const [i, value] of values.entries())
      expect(Math.abs(value - (expected[i] as number))).toBeLessThanOrEqual(tolerance * most);
  };

  it.each([
    // Searched for; less than four times as many columns as components; few rows.
    { c: 137, rank: 5, rows: [140, 131], dtypes: ['bf16'] },
    { c: 20, rank: 9, rows: [30, 9, 25], dtypes: ['f32', 'bf16', 'f64'] },
    { c: 137, rank: 5, rows: [20, 5, 140], dtypes: ['f32'] },
  ] as const)('is the analysis of $rank components of $c columns in $rows rows', (sizes) => {
    const { c, rank, rows, dtypes } = sizes;
    for (const dtype of dtypes) {
      let [state, count] = [undefined as PcaState | undefined, 0];
      let expected: Plain | null = null;
      for (const [at, n] of rows.entries()) {
        const x = rowsOf(n, c, at + 1).to(dtype);
        const before: Tensor | undefined = state?.vectors;
        const task = { x, rank, seed: 5, ...(state && { before: { ...state, count } }) };
        const found = (noGrad(() => pcaUpdates([task])) as [PcaState])[0];
        const plainly: Plain = plain(x.to('f64'), rank, expected);
        // A component is off by its residual of 1e-2 over a gap of a half at least, 0.02, and what belongs to it by the square of that.
        near(found.singular, valuesOf(plainly.s), 2e-4);
        near(found.mean, valuesOf(plainly.mean), 1e-6);
        near(found.scatter, [plainly.scatter], 1e-6);
        const shares = valuesOf(plainly.s).map((s) => s ** 2 / plainly.scatter);
        near(found.ratios, shares, 4e-4);
        const components = slice(found.vectors, 0, { stop: rank });
        const cosines = valuesOf(matmul(components.to('f64'), plainly.vt, { transposeB: true }));
        for (let i = 0; i < rank; i++) {
          expect(Math.abs(cosines[i * rank + i] as number)).toBeGreaterThan(1 - 2e-4);
          const vector = valuesOf(slice(components, 0, { start: i, stop: i + 1 }));
          expect(Math.max(...vector)).toBeGreaterThanOrEqual(-Math.min(...vector));
        }
        const products = matmul(components, components, { transposeB: true });
        const unit = Array.from({ length: rank ** 2 }, (_, i) => (i % (rank + 1) === 0 ? 1 : 0));
        near(products, unit, 1e-5);
        const turned = (): number[] => {
          const all = matmul(components, slice(before as Tensor, 0, { stop: rank }), {
            transposeB: true,
          });
          return unit.flatMap((one, i) => (one === 1 ? [valuesOf(all)[i] as number] : []));
        };
        near(found.cosines, before === undefined ? new Array(rank).fill(0) : turned(), 1e-5);
        [state, count, expected] = [found, count + n, plainly];
      }
    }
  });

  it('finds nothing explained where all rows are alike', () => {
    for (const [n, c] of [
      [9, 7],
      [150, 140], // searched
    ] as const) {
      const x = tensor(
        Float32Array.from({ length: n * c }, (_, at) => 1 + (at % c)),
        {
          shape: [n, c],
        },
      );
      const [first] = noGrad(() => pcaUpdates([{ x, rank: 3, seed: 1 }])) as [PcaState];
      const again = { x, rank: 3, seed: 1, before: { ...first, count: n } };
      const [later] = noGrad(() => pcaUpdates([again])) as [PcaState];
      for (const { ratios, scatter, mean: middle } of [first, later]) {
        expect(valuesOf(ratios)).toEqual(new Float64Array(3));
        expect(valuesOf(scatter)).toEqual(new Float64Array(1));
        expect(valuesOf(middle)).toEqual(Float64Array.from({ length: c }, (_, j) => 1 + j));
      }
    }
  });

  it('of several is that of each, whichever others are in the call', () => {
    const tasks = [1, 2, 3].map((i) => ({ x: rowsOf(140, 150 + i, i), rank: 4 + i, seed: i }));
    const first = noGrad(() => pcaUpdates(tasks));
    const later = tasks.map((task, i) => ({
      ...task,
      ...(i !== 1 && { before: { ...(first[i] as PcaState), count: 140 } }),
    }));
    const all = noGrad(() => pcaUpdates(later));
    for (const [i, task] of later.entries()) {
      const [one] = noGrad(() => pcaUpdates([task])) as [PcaState];
      for (const name of Object.keys(one) as (keyof PcaState)[])
        expect(valuesOf((all[i] as PcaState)[name])).toEqual(valuesOf(one[name]));
    }
    expect(pcaUpdates([])).toEqual([]);
  });

  it('refuses ranks, states that do not fit and gradients', () => {
    const x = randomTensor([20, 12], { dtype: 'f32' });
    const fails = (task: Partial<PcaTask>, message: string): void => {
      expect(() => pcaUpdates([{ x, rank: 2, ...task }])).toThrow(message);
    };
    fails({ rank: 13 }, 'pca_updates: rank must be 1..12 for (20,12), got 13');
    fails(
      { x: randomTensor([3, 12]), rank: 4 },
      'pca_updates: rank must be 1..3 for (3,12), got 4',
    );
    const [state] = noGrad(() => pcaUpdates([{ x, rank: 2 }])) as [PcaState];
    fails({ before: { ...state, count: 0 } }, 'pca_updates: counts must be >= 1, got 0');
    fails({ rank: 3, before: { ...state, count: 20 } }, 'pca_updates: vectors must be (P,C)');
    const wanting = randomTensor([20, 12], { dtype: 'f32', requiresGrad: true });
    fails({ x: wanting }, 'pca_updates: has no gradient');
  });
});

describe('randomizedSvds', () => {
  it('equals randomizedSvd of each matrix, whichever others are in the call', () => {
    const tasks = [
      { a: randomTensor([140, 200], { dtype: 'f32', seed: 3 }), rank: 5, seed: 9 },
      { a: randomTensor([30, 20], { dtype: 'f64', seed: 4 }), rank: 3 },
      { a: randomTensor([300, 150], { dtype: 'f32', seed: 5 }).to('bf16'), rank: 7, seed: 2 },
    ];
    for (const niter of [2, 16, 'converged'] as const) {
      const all = randomizedSvds(tasks, { niter });
      expect(all.length).toBe(3);
      tasks.forEach(({ a, rank, seed = 0 }, i) => {
        const one = randomizedSvd(a, rank, { niter, seed });
        for (const part of ['u', 's', 'vt'] as const) {
          const mine = all[i]?.[part] as Tensor;
          expect(mine.shape).toEqual(one[part].shape);
          expect(mine.dtype).toBe(one[part].dtype);
          expect(valuesOf(mine)).toEqual(valuesOf(one[part]));
        }
      });
    }
    expect(randomizedSvds([])).toEqual([]);
  });
});

describe('trailingSvds', () => {
  /** |A^T A - B^T B| of the rows of both, which are orthonormal. */
  const apart = (a: Tensor, b: Tensor): number => {
    const [m, n] = a.shape as [number, number];
    const inner = multiply(valuesOf(a), transpose(valuesOf(b), m, n), m, n, m);
    return Math.sqrt(Math.max(0, 2 * (m - inner.reduce((sum, value) => sum + value ** 2, 0))));
  };

  it.each([
    ['f32', [200, 180], 7],
    ['f64', [170, 230], 5],
    ['bf16', [260, 170], 4],
    ['f32', [30, 20], 20],
    ['f64', [3, 9], 1],
  ] as const)('%s %j: the last %i triplets of svd', (dtype, shape, rank) => {
    const a = randomTensor([...shape], { dtype: dtype === 'f64' ? 'f64' : 'f32', seed: 8 });
    const narrow = dtype === 'bf16' ? a.to('bf16') : a;
    const [{ u, s, vt }] = trailingSvds([{ a: narrow, rank, seed: 3 }]) as [SvdFactors];
    const full = svd(narrow.to('f64'));
    const k = Math.min(...shape);
    const wide = dtype === 'f64' ? 'f64' : 'f32';
    expect([u.dtype, s.dtype, vt.dtype]).toEqual([wide, wide, wide]);
    expect([u.shape, s.shape, vt.shape]).toEqual([[shape[0], rank], [rank], [rank, shape[1]]]);
    const tolerance = wide === 'f64' ? 1e-6 : 1e-3;
    expect(relativeError(valuesOf(s), valuesOf(full.s).slice(k - rank))).toBeLessThan(
      wide === 'f64' ? 1e-9 : 1e-6,
    );
    const last = noGrad(() => slice(full.vt, 0, { start: -rank }));
    expect(apart(vt.to('f64'), last)).toBeLessThan(tolerance);
    const left = noGrad(() => swapped(u.to('f64')));
    const lastLeft = noGrad(() => swapped(slice(full.u, 1, { start: -rank })));
    expect(apart(left, lastLeft)).toBeLessThan(tolerance);
  });

  it('of several matrices is that of each', () => {
    const tasks = [
      { a: randomTensor([190, 200], { dtype: 'f32', seed: 3 }), rank: 5, seed: 9 },
      { a: randomTensor([30, 20], { dtype: 'f64', seed: 4 }), rank: 3 },
    ];
    const all = trailingSvds(tasks);
    tasks.forEach((task, i) => {
      const [one] = trailingSvds([task]) as [SvdFactors];
      for (const part of ['u', 's', 'vt'] as const) {
        expect(valuesOf(all[i]?.[part] as Tensor)).toEqual(valuesOf(one[part]));
      }
    });
    expect(trailingSvds([])).toEqual([]);
  });

  it('refuses ranks that there are not, and a gradient', () => {
    expect(() => trailingSvds([{ a: randomTensor([4, 9]), rank: 5 }])).toThrow(
      'trailing_svds: rank must be 1..4 for (4,9), got 5',
    );
    const wanting = randomTensor([4, 4], { requiresGrad: true });
    expect(() => trailingSvds([{ a: wanting, rank: 2 }])).toThrow(/trailing_svds: has no gradient/);
  });
});

describe('PiSSA split from the converged SVD', () => {
  it.each(cases.pissa)('$name', ({ name, r, scale }) => {
    const { shape } = array(`${name}/W`);
    const [m, n] = shape as [number, number];
    const W = plain(`${name}/W`);
    const { u, s, vt } = scope(() => randomizedSvd(goldenTensor(array(`${name}/W`), 'f64'), r));
    const root = valuesOf(s).map((value) => Math.sqrt(value / scale));
    const B = scaleColumns(valuesOf(u), root);
    const A = transpose(scaleColumns(transpose(valuesOf(vt), r, n), root), n, r);
    const residual = difference(
      W,
      multiply(B, A, m, r, n).map((value) => scale * value),
    );
    // These matrices are small enough for the dense algorithm, which is exact; otherwise only the energy would converge.
    expect(relativeError(residual, plain(`${name}/W_res`))).toBeLessThanOrEqual(1e-9);
    expect(
      relativeError(multiply(transpose(A, r, n), A, n, r, n), plain(`${name}/AtA`)),
    ).toBeLessThanOrEqual(1e-9);
    expect(
      relativeError(multiply(B, transpose(B, m, r), m, r, m), plain(`${name}/BBt`)),
    ).toBeLessThanOrEqual(1e-9);
  });
});

describe('gradients', () => {
  it('qr, tall and square', () => {
    gradcheck((a) => Object.values(qr(a)), [randomTensor([7, 4], { seed: 2 })], {
      tolerance: 1e-5,
    });
    gradcheck((a) => Object.values(qr(a)), [randomTensor([3, 3], { seed: 3 })], {
      tolerance: 1e-5,
    });
    expect(() => qr(randomTensor([2, 3], { requiresGrad: true }))).toThrow(/rows/);
  });
  it('svd of tall, wide and square matrices', () => {
    // The solver chooses the signs of the vectors, so that functions independent of them are checked, with the values.
    for (const shape of [
      [6, 4],
      [4, 6],
      [5, 5],
    ]) {
      gradcheck((a) => Object.values(svd(a)), [randomTensor(shape, { seed: 4 })], {
        tolerance: 1e-5,
      });
      gradcheck((a) => singularValues(a), [randomTensor(shape, { seed: 5 })]);
    }
  });
  it('eigh of a symmetric matrix, with symmetric changes of its entries', () => {
    const half = randomTensor([5, 5], { seed: 6 });
    const values = valuesOf(half);
    const symmetric = tensor(
      Float64Array.from(values, (v, i) => v + (values[(i % 5) * 5 + Math.floor(i / 5)] as number)),
      { shape: [5, 5], requiresGrad: true },
    );
    const { values: w, vectors } = eigh(symmetric);
    const dw = randomTensor([5], { seed: 7 });
    const dv = randomTensor([5, 5], { seed: 8 });
    w.backward(dw, { retainGraph: true });
    vectors.backward(dv);
    const found = valuesOf(symmetric.grad as Tensor);
    const base = valuesOf(symmetric);
    const objective = (moved: Float64Array): number => {
      const result = noGrad(() => eigh(tensor(moved, { shape: [5, 5] })));
      const dot = (a: Tensor, b: Tensor) =>
        valuesOf(a).reduce((s, v, i) => s + v * (valuesOf(b)[i] as number), 0);
      return dot(result.values, dw) + dot(result.vectors, dv);
    };
    for (let i = 0; i < 5; i++) {
      for (let j = 0; j <= i; j++) {
        const moved = (delta: number) => {
          const copy = base.slice();
          copy[i * 5 + j] = (copy[i * 5 + j] as number) + delta;
          if (i !== j) copy[j * 5 + i] = (copy[j * 5 + i] as number) + delta;
          return objective(copy);
        };
        const numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6;
        const tape = (found[i * 5 + j] as number) * (i === j ? 1 : 2);
        expect(Math.abs(numeric - tape)).toBeLessThan(1e-5 * Math.max(1, Math.abs(tape)));
      }
    }
  });
});

describe('gram', () => {
  it('sums a^T a in f64 and accumulates in place', () => {
    const a = randomTensor([9, 4], { dtype: 'f32', seed: 1 });
    const g = gram(a);
    expect(g.dtype).toBe('f64');
    const A = valuesOf(a);
    const expected = multiply(transpose(A, 9, 4), A, 4, 9, 4);
    expect(relativeError(valuesOf(g), expected)).toBeLessThan(1e-14);
    gramAdd(g, a);
    expect(
      relativeError(
        valuesOf(g),
        expected.map((v) => 2 * v),
      ),
    ).toBeLessThan(1e-14);
    expect(() => gramAdd(g, randomTensor([3, 5]))).toThrow(/\(C,C\)/);
    expect(() => gram(randomTensor([3, 5], { requiresGrad: true }))).toThrow(/gradient/);
  });

  it('adds the second moments of scaled rows', () => {
    const scales = [0.5, 0.5, 3, 0.5, 1, 1, 1, 2, 2];
    for (const dtype of ['f32', 'bf16', 'f64'] as const) {
      const a = randomTensor([9, 4], { dtype, seed: 1 });
      const g = zeros([4, 4], { dtype: 'f64' });
      const scale = tensor(Float32Array.from(scales));
      scaledGramAdd(g, a, scale);
      scaledGramAdd(g, a, scale);
      const A = Array.from(valuesOf(a), (v, at) => v * (scales[Math.floor(at / 4)] as number));
      const expected = multiply(transpose(A, 9, 4), A, 4, 9, 4).map((v) => 2 * v);
      expect(relativeError(valuesOf(g), expected), dtype).toBeLessThan(1e-6);
      expect(() => scaledGramAdd(g, a, tensor(Float32Array.from([1])))).toThrow(
        /scale must be \(N\)/,
      );
    }
  });

  it('gives the singular values of H W^T through gramSpectrum', () => {
    const h = randomTensor([12, 5], { seed: 2 });
    const w = randomTensor([20, 5], { seed: 3 });
    const spectrum = valuesOf(gramSpectrum(gram(h), gram(w)));
    const z = multiply(valuesOf(h), transpose(valuesOf(w), 20, 5), 12, 5, 20);
    const s = valuesOf(svd(tensor(z, { shape: [12, 20] })).s).slice(0, 5);
    expect(relativeError(spectrum, s)).toBeLessThan(1e-12);
  });
});

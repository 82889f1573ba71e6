import { describe, expect, it } from 'vitest';
import { relativeAttention } from '../../lib/ops/index.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

interface Case {
  cu: number[];
  cuKeys?: number[];
  lengths?: number[];
  keyLengths?: number[];
  heads: number;
  size: number;
  terms?: ('bias' | 'positionKeys' | 'positionQueries')[];
  /** Rows of the position tables. */
  positions?: number;
  /** How the rows go with the distance; default: to and fro. */
  order?: 'rising' | 'falling';
  causal?: boolean;
  scale?: number;
}

const kAll: Case['terms'] = ['bias', 'positionKeys', 'positionQueries'];
const kCases: Record<string, Case> = {
  'one row': { cu: [0, 1], heads: 1, size: 1, terms: kAll, positions: 1 },
  'no terms': { cu: [0, 31], heads: 2, size: 8 },
  'a bias': { cu: [0, 33, 64], heads: 3, size: 5, terms: ['bias'], scale: 1 },
  'a bias, causal, more than one tile': {
    cu: [0, 123, 130],
    heads: 2,
    size: 8,
    terms: ['bias'],
    causal: true,
  },
  'keys by position': { cu: [0, 31], heads: 2, size: 8, terms: ['positionKeys'], positions: 7 },
  'queries by position': {
    cu: [0, 33],
    heads: 2,
    size: 8,
    terms: ['positionQueries'],
    positions: 40,
  },
  'disentangled, more than one tile': {
    cu: [0, 70, 70, 101],
    heads: 2,
    size: 6,
    terms: ['positionKeys', 'positionQueries'],
    positions: 33,
  },
  'all terms and padding': {
    cu: [0, 33, 66, 99],
    lengths: [33, 1, 20],
    heads: 2,
    size: 4,
    terms: kAll,
    positions: 9,
    scale: 0.3,
  },
  'other keys': { cu: [0, 5, 70], cuKeys: [0, 33, 40], heads: 2, size: 8, scale: 1 },
  'other keys with padding, one side empty': {
    cu: [0, 5, 9, 12],
    cuKeys: [0, 8, 8, 15],
    lengths: [3, 4, 3],
    keyLengths: [8, 0, 2],
    heads: 2,
    size: 3,
  },
};

/** Cases as models have them: buckets of the distance, a row for each short one. They lie in the middle of a long table. */
const kBuckets: Record<string, Case> = {
  'rising buckets': {
    cu: [0, 70, 70, 101],
    heads: 2,
    size: 6,
    terms: ['positionKeys', 'positionQueries'],
    positions: 110,
    order: 'rising',
  },
  'falling buckets, padding and a bias': {
    cu: [0, 150, 240],
    lengths: [150, 33],
    heads: 1,
    size: 8,
    terms: kAll,
    positions: 128,
    order: 'falling',
  },
  'falling buckets, causal': {
    cu: [0, 17, 100],
    heads: 1,
    size: 5,
    terms: ['positionKeys', 'positionQueries'],
    positions: 128,
    order: 'falling',
    causal: true,
  },
};

const reachOf = ({ cu, cuKeys = cu }: Case): number =>
  Math.max(...[cu, cuKeys].flatMap((c) => c.slice(1).map((end, b) => end - (c[b] as number)))) - 1;
const indexOf = (c: Case): number[] =>
  Array.from({ length: 2 * reachOf(c) + 1 }, (_, r) =>
    c.order ? bucketOf(r - reachOf(c), c) : (r * 7) % (c.positions as number),
  );
function bucketOf(relative: number, { order, positions }: Case): number {
  const [near, distance] = [20, Math.abs(relative)];
  const far = near + Math.floor(11 * Math.log2(distance / near));
  const bucket = Math.sign(relative) * (distance <= near ? distance : far);
  return Math.floor((positions as number) / 2) + (order === 'rising' ? bucket : -bucket);
}

/** The inputs: q, k, v, then the terms in the order of kAll. */
function inputs(c: Case, dtype: (typeof kFloatTypes)[number] = 'f64'): Tensor[] {
  const [n, m] = [c.cu.at(-1) as number, (c.cuKeys ?? c.cu).at(-1) as number];
  const shapes: Record<string, number[]> = {
    q: [n, c.heads, c.size],
    k: [m, c.heads, c.size],
    v: [m, c.heads, c.size],
    bias: [2 * reachOf(c) + 1, c.heads],
    positionKeys: [c.positions ?? 0, c.heads, c.size],
    positionQueries: [c.positions ?? 0, c.heads, c.size],
  };
  return ['q', 'k', 'v', ...(c.terms ?? [])].map((name, i) =>
    randomTensor(shapes[name] as number[], { seed: i + 1, dtype }),
  );
}

function run(c: Case, [q, k, v, ...rest]: Tensor[]): Tensor {
  const int = (list: number[]) => tensor(Int32Array.from(list));
  const terms = Object.fromEntries((c.terms ?? []).map((name, i) => [name, rest[i]]));
  return relativeAttention(q as Tensor, k as Tensor, v as Tensor, {
    cuQueries: int(c.cu),
    ...(c.cuKeys && { cuKeys: int(c.cuKeys) }),
    ...(c.lengths && { queryLengths: int(c.lengths) }),
    ...(c.keyLengths && { keyLengths: int(c.keyLengths) }),
    ...(c.positions !== undefined && { index: int(indexOf(c)) }),
    ...(c.causal !== undefined && { causal: c.causal }),
    ...(c.scale !== undefined && { scale: c.scale }),
    ...terms,
  });
}

/** The definition in plain loops. */
function definition(c: Case, given: Tensor[]): Float64Array {
  const { heads, size, cu, cuKeys = cu, causal = false, scale = 1 / Math.sqrt(size) } = c;
  const [q, k, v, ...rest] = given.map(values) as [Float64Array, Float64Array, Float64Array];
  const term = (name: 'bias' | 'positionKeys' | 'positionQueries') =>
    (rest as Float64Array[])[(c.terms ?? []).indexOf(name)];
  const [bias, pk, pq] = [term('bias'), term('positionKeys'), term('positionQueries')];
  const index = c.positions === undefined ? [] : indexOf(c);
  const dot = (a: Float64Array, i: number, b: Float64Array, j: number, h: number): number => {
    let sum = 0;
    for (let d = 0; d < size; ++d) {
      sum += (a[(i * heads + h) * size + d] as number) * (b[(j * heads + h) * size + d] as number);
    }
    return sum;
  };
  const out = new Float64Array(q.length);
  for (let b = 0; b + 1 < cu.length; ++b) {
    const [begin, first] = [cu[b] as number, cuKeys[b] as number];
    const queries = c.lengths?.[b] ?? (cu[b + 1] as number) - begin;
    const own = c.cuKeys === undefined ? c.lengths : undefined;
    const keys = (c.keyLengths ?? own)?.[b] ?? (cuKeys[b + 1] as number) - first;
    for (let h = 0; h < heads; ++h) {
      for (let t = 0; t < queries; ++t) {
        const weights = Array.from({ length: keys }, (_, j) => {
          if (causal && j > t) return 0;
          const r = j - t + reachOf(c);
          let score = dot(q, begin + t, k, first + j, h);
          if (pk) score += dot(q, begin + t, pk, index[r] as number, h);
          if (pq) score += dot(k, first + j, pq, index[r] as number, h);
          return Math.exp(scale * score + (bias?.[r * heads + h] ?? 0));
        });
        const sum = weights.reduce((total, x) => total + x, 0);
        weights.forEach((weight, j) => {
          for (let d = 0; d < size; ++d) {
            const at = ((begin + t) * heads + h) * size + d;
            const value = v[((first + j) * heads + h) * size + d] as number;
            out[at] = (out[at] as number) + (weight / sum) * value;
          }
        });
      }
    }
  }
  return out;
}

describe('relativeAttention', () => {
  function checkForward(c: Case): void {
    for (const dtype of kFloatTypes) {
      const given = inputs(c, dtype);
      const out = run(c, given);
      expect(out.dtype).toBe(dtype);
      // Sums have the dtype of the accumulator; the result is rounded, and in bf16 the probabilities may be.
      const tolerance = roundingOf(dtype) + (dtype === 'f64' ? 1e-13 : 3e-6);
      expectClose(out, definition(c, given), tolerance);
    }
  }
  for (const [name, c] of Object.entries(kCases)) {
    it(`equals its definition and has its gradient with ${name}`, () => {
      checkForward(c);
      gradcheck((...given) => run(c, given), inputs(c));
    });
  }

  it('gives padding rows zeros and no gradient, and frozen operands none', () => {
    const c = kCases['all terms and padding'] as Case;
    for (const dtype of kFloatTypes) {
      const leaves = inputs(c, dtype);
      for (const leaf of leaves.slice(0, 3)) leaf.requiresGrad = true;
      const out = run(c, leaves);
      out.backward(randomTensor(out.shape, { seed: 9, dtype }));
      for (const t of [out, ...leaves.slice(0, 3).map((leaf) => leaf.grad as Tensor)]) {
        const [perRow, got] = [t.size / 99, values(t)];
        for (let n = 0; n < 99; ++n) {
          if (n % 33 < (c.lengths?.[Math.floor(n / 33)] as number)) continue;
          const row = got.subarray(n * perRow, (n + 1) * perRow);
          expect(
            row.every((x) => x === 0),
            `row ${n}`,
          ).toBe(true);
        }
      }
      expect(leaves[3]?.grad ?? null).toBeNull();
    }
  });

  function checkGradients(c: Case): void {
    const gradients = (dtype: (typeof kFloatTypes)[number], from: Tensor[]): Tensor[] => {
      const leaves = from.map((t) => tensor(values(t), { shape: t.shape, dtype }));
      for (const leaf of leaves) leaf.requiresGrad = true;
      const out = run(c, leaves);
      out.backward(
        tensor(values(randomTensor(out.shape, { seed: 9, dtype: 'bf16' })), {
          shape: out.shape,
          dtype,
        }),
      );
      return leaves.map((leaf) => leaf.grad as Tensor);
    };
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      const given = inputs(c, dtype); // both computations start from values that the dtype represents
      const want = gradients('f64', given);
      gradients(dtype, given).forEach((got, i) => {
        const exact = values(want[i] as Tensor);
        const largest = exact.reduce((most, x) => Math.max(most, Math.abs(x)), 1);
        // The saved result is rounded, too, and affects every gradient through delta = <dout, out>.
        expectClose(got, exact, (4 * roundingOf(dtype) + 1e-5) * largest);
      });
    }
  }
  it('has gradients within rounding in every dtype', () => {
    checkGradients(kCases['disentangled, more than one tile'] as Case);
  });
  for (const [name, c] of Object.entries(kBuckets)) {
    it(`equals its definition and has gradients within rounding with ${name}`, () => {
      checkForward(c);
      checkGradients(c);
    });
  }

  it('is deterministic', () => {
    const c = kCases['all terms and padding'] as Case;
    const once = () => {
      const leaves = inputs(c, 'bf16');
      for (const leaf of leaves) leaf.requiresGrad = true;
      const out = run(c, leaves);
      out.backward(randomTensor(out.shape, { seed: 9, dtype: 'bf16' }));
      return [out, ...leaves.map((leaf) => leaf.grad as Tensor)].map(values);
    };
    expect(once()).toEqual(once());
  });

  it('names bad arguments in errors, and bad segments at the next read', () => {
    const [q, k, v] = inputs({ cu: [0, 4], heads: 2, size: 4 }) as [Tensor, Tensor, Tensor];
    const int = (...list: number[]) => tensor(Int32Array.from(list));
    const cuQueries = int(0, 4);
    const call = (options: Partial<Parameters<typeof relativeAttention>[3]>) =>
      relativeAttention(q, k, v, { cuQueries, ...options });
    expect(() => relativeAttention(q, randomTensor([4, 2, 5]), v, { cuQueries })).toThrow(
      'relative_attention: k must be (M,H,D)=(4,2,4), got (4,2,5)',
    );
    expect(() => call({ bias: randomTensor([7, 3]) })).toThrow('bias must be (R,H)=(7,2)');
    expect(() => call({ bias: randomTensor([8, 2]) })).toThrow('odd number of relative positions');
    expect(() => call({ positionKeys: randomTensor([3, 2, 4]) })).toThrow('index goes together');
    expect(() => call({ index: int(0) })).toThrow('index goes together');
    expect(() => call({ cuKeys: int(0, 2, 4) })).toThrow('cuKeys must be the shape of cuQueries');
    expect(() => call({ bias: randomTensor([7, 2], { dtype: 'f32' }) })).toThrow(
      'bias must be f64',
    );
    expect(() => call({ bias: randomTensor([5, 2]) }).dataSync()).toThrow(
      'segment 0 has 4 rows, more than the 5 relative positions reach',
    );
    const positionKeys = randomTensor([3, 2, 4]);
    expect(() => call({ positionKeys, index: int(0, 1, 2, 3, 2, 1, 0) }).dataSync()).toThrow(
      'index[3] = 3 is not a row of the 3 positions',
    );
    expect(() => call({ cuKeys: int(0, 3) }).dataSync()).toThrow('must rise from 0 to the 4 rows');
  });
});

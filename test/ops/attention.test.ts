import { describe, expect, it } from 'vitest';
import { type AttentionOptions, attention, expand, indexSelect } from '../../lib/ops/index.ts';
import { memoryStats, resetPeakMemory, synchronizeSync } from '../../lib/runtime.ts';
import { scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { kTestDevice } from '../support/device.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

interface Case {
  cu: number[];
  lengths?: number[];
  heads: number;
  kvHeads: number;
  size: number;
  /** By head. */
  sinks?: number[];
  options?: Omit<AttentionOptions, 'cuSeqlens' | 'lengths' | 'sinks'>;
}

const kCases: Record<string, Case> = {
  'one row': { cu: [0, 1], heads: 1, kvHeads: 1, size: 1 },
  'grouped heads': { cu: [0, 31], heads: 6, kvHeads: 2, size: 8 },
  'packed sequences, one of them empty': { cu: [0, 5, 5, 38, 80], heads: 2, kvHeads: 1, size: 33 },
  'more than one tile': { cu: [0, 123], heads: 2, kvHeads: 2, size: 16 },
  'not causal': { cu: [0, 33, 70], heads: 2, kvHeads: 1, size: 8, options: { causal: false } },
  'a window': { cu: [0, 100], heads: 2, kvHeads: 1, size: 8, options: { window: 33 } },
  'a window wider than any segment': {
    ...{ cu: [0, 40, 70], heads: 2, kvHeads: 1, size: 8 },
    options: { window: 2 ** 63 - 1024, causal: false },
  },
  'a window of one': { cu: [0, 9], heads: 1, kvHeads: 1, size: 4, options: { window: 1 } },
  'a window to both sides': {
    cu: [0, 100],
    heads: 1,
    kvHeads: 1,
    size: 8,
    options: { window: 20, causal: false },
  },
  'a soft-cap and a scale': {
    cu: [0, 31, 64],
    heads: 2,
    kvHeads: 1,
    size: 8,
    options: { softcap: 1.5, scale: 0.7 },
  },
  'sinks, a window and a soft-cap': {
    ...{ cu: [0, 31, 100], heads: 4, kvHeads: 2, size: 9, sinks: [-20, 0.3, 1.7, 6] },
    options: { window: 20, softcap: 2.5 },
  },
  'sinks without a causal mask': {
    ...{ cu: [0, 70], lengths: [66], heads: 2, kvHeads: 1, size: 8, sinks: [0, 2] },
    options: { causal: false },
  },
  'padded segments': { cu: [0, 33, 66, 99], lengths: [33, 1, 20], heads: 3, kvHeads: 1, size: 8 },
};

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);

function inputs(c: Case, dtype: (typeof kFloatTypes)[number] = 'f64'): [Tensor, Tensor, Tensor] {
  const rows = c.cu.at(-1) as number;
  return [
    randomTensor([rows, c.heads, c.size], { seed: 1, dtype }),
    randomTensor([rows, c.kvHeads, c.size], { seed: 2, dtype }),
    randomTensor([rows, c.kvHeads, c.size], { seed: 3, dtype }),
  ];
}

function optionsOf(c: Case): AttentionOptions {
  return {
    cuSeqlens: tensor(Int32Array.from(c.cu)),
    lengths: c.lengths ? tensor(Int32Array.from(c.lengths)) : null,
    ...c.options,
  };
}

const sinksOf = (c: Case, dtype: (typeof kFloatTypes)[number]): Tensor | null =>
  c.sinks
    ? tensor(dtype === 'f64' ? Float64Array.from(c.sinks) : Float32Array.from(c.sinks))
    : null;

/** The definition of attention in plain loops. */
function definition(c: Case, q: Float64Array, k: Float64Array, v: Float64Array): Float64Array {
  const { heads, kvHeads, size } = c;
  const { causal = true, window = 0, softcap = 0, scale = 1 / Math.sqrt(size) } = c.options ?? {};
  const out = new Float64Array(q.length);
  const row = (t: number, h: number, count: number) => (t * count + h) * size;
  for (let b = 0; b + 1 < c.cu.length; ++b) {
    const begin = c.cu[b] as number;
    const rows = c.lengths?.[b] ?? (c.cu[b + 1] as number) - begin;
    for (let h = 0; h < heads; ++h) {
      const kv = Math.floor((h * kvHeads) / heads);
      for (let t = 0; t < rows; ++t) {
        const at = row(begin + t, h, heads);
        const p = Array.from({ length: rows }, (_, j) => {
          if ((causal && j > t) || (window > 0 && Math.abs(t - j) >= window)) return 0;
          let score = 0;
          for (let d = 0; d < size; ++d) {
            score += (q[at + d] as number) * (k[row(begin + j, kv, kvHeads) + d] as number);
          }
          score *= scale;
          return Math.exp(softcap > 0 ? softcap * Math.tanh(score / softcap) : score);
        });
        const sum = p.reduce((total, x) => total + x, Math.exp(c.sinks?.[h] ?? -Infinity));
        p.forEach((x, j) => {
          for (let d = 0; d < size; ++d) {
            const value = v[row(begin + j, kv, kvHeads) + d] as number;
            out[at + d] = (out[at + d] as number) + (x / sum) * value;
          }
        });
      }
    }
  }
  return out;
}

describe('attention', () => {
  for (const [name, c] of Object.entries(kCases)) {
    if (c.sinks && kTestDevice !== 'cpu') continue;
    it(`equals its definition and has its gradient with ${name}`, () => {
      for (const dtype of kFloatTypes) {
        const [q, k, v] = inputs(c, dtype);
        const out = attention(q, k, v, { ...optionsOf(c), sinks: sinksOf(c, dtype) });
        expect(out.shape).toEqual(q.shape);
        expect(out.dtype).toBe(dtype);
        // In bf16 the probabilities are rounded before their product with v, and then the result.
        const tolerance = 3 * roundingOf(dtype) + (dtype === 'f64' ? 1e-14 : 2e-6);
        expectClose(out, definition(c, values(q), values(k), values(v)), tolerance);
      }
      const sinks = sinksOf(c, 'f64');
      gradcheck(
        (q, k, v, sinks) =>
          attention(q as Tensor, k as Tensor, v as Tensor, { ...optionsOf(c), sinks }),
        [...inputs(c), ...(sinks ? [sinks] : [])],
      );
    });
  }

  it('gives padding rows zeros and no gradient', () => {
    const c = kCases['padded segments'] as Case;
    for (const dtype of kFloatTypes) {
      const leaves = inputs(c, dtype);
      for (const leaf of leaves) leaf.requiresGrad = true;
      const out = attention(...leaves, optionsOf(c));
      out.backward(randomTensor(out.shape, { seed: 9, dtype }));
      for (const t of [out, ...leaves.map((leaf) => leaf.grad as Tensor)]) {
        const perRow = t.size / 99;
        const got = values(t);
        for (let n = 0; n < 99; ++n) {
          const padding = n % 33 >= (c.lengths?.[Math.floor(n / 33)] ?? 33);
          const zero = got.subarray(n * perRow, (n + 1) * perRow).every((x) => x === 0);
          if (padding) expect(zero, `row ${n}`).toBe(true);
        }
      }
    }
  });

  it('gives packed sequences exactly the results of each alone', () => {
    const c = { cu: [0, 31, 64, 187], heads: 4, kvHeads: 2, size: 16, sinks: [-3, 0, 1, 2] };
    const [q, k, v] = inputs(c, 'f32');
    const sinks = kTestDevice === 'cpu' ? sinksOf(c, 'f32') : null;
    const packed = values(attention(q, k, v, { ...optionsOf(c), sinks }));
    const part = (t: Tensor, from: number, to: number) => {
      const perRow = t.size / 187;
      return tensor((t.dataSync() as Float32Array).slice(from * perRow, to * perRow), {
        shape: [to - from, ...t.shape.slice(1)],
      });
    };
    for (let b = 0; b < 3; ++b) {
      const [from, to] = [c.cu[b] as number, c.cu[b + 1] as number];
      const alone = attention(part(q, from, to), part(k, from, to), part(v, from, to), {
        cuSeqlens: tensor(Int32Array.of(0, to - from)),
        sinks,
      });
      expect(values(alone)).toEqual(packed.slice(from * 64, to * 64));
    }
  });

  it('computes sinks on the CPU, and refuses them by name on other devices', () => {
    const c = kCases['sinks, a window and a soft-cap'] as Case;
    const sinks = sinksOf(c, 'f32');
    const run = () => values(attention(...inputs(c, 'f32'), { ...optionsOf(c), sinks }));
    if (kTestDevice === 'cpu') expect(run().every(Number.isFinite)).toBe(true);
    else expect(run).toThrow('attention: sinks are not computed on CUDA devices');
  });

  it('never allocates a matrix of scores', () => {
    const rows = kTestDevice === 'cpu' ? 4096 : 1024;
    const c = { cu: [0, rows], heads: 1, kvHeads: 1, size: 16 };
    const leaves = inputs(c, 'f32');
    for (const leaf of leaves) leaf.requiresGrad = true;
    synchronizeSync();
    resetPeakMemory();
    const before = memoryStats().peakBytes;
    scope(() => {
      const out = attention(...leaves, optionsOf(c));
      out.backward(out.detach());
    });
    synchronizeSync();
    const used = memoryStats().peakBytes - before;
    // The scores alone would be four times that; operands, sums and packed tiles are a few hundred bytes per row and thread.
    expect(used).toBeGreaterThan(rows * 16 * 4);
    expect(used).toBeLessThan(rows * rows);
  });

  it('for only the last rows of each sequence equals those rows of the full result, with gradients', () => {
    const c = { cu: [0, 70, 90, 170], lengths: [70, 20, 75], heads: 2, kvHeads: 1, size: 8 };
    const rows = [...range(0, 70), ...range(80, 90), ...range(155, 170)];
    const cuQueries = tensor(Int32Array.of(0, 70, 80, 95));
    const chosen = tensor(Int32Array.from(rows));
    for (const dtype of ['f64', 'f32'] as const) {
      const run = (last: boolean): Tensor[] => {
        const [q, k, v] = inputs(c, dtype);
        for (const leaf of [q, k, v]) leaf.requiresGrad = true;
        const out = last
          ? attention(indexSelect(q, chosen), k, v, { ...optionsOf(c), cuQueries })
          : indexSelect(attention(q, k, v, optionsOf(c)), chosen);
        out.backward(randomTensor(out.shape, { seed: 9, dtype }));
        return [out, ...[q, k, v].map((leaf) => leaf.grad as Tensor)];
      };
      const want = run(false);
      run(true).forEach((got, i) => {
        expectClose(got, values(want[i] as Tensor), dtype === 'f64' ? 1e-13 : 3e-6);
      });
    }
  });

  it('is deterministic', () => {
    const c = { cu: [0, 300, 310], heads: 6, kvHeads: 2, size: 16 };
    const run = () => {
      const leaves = inputs(c, 'bf16');
      for (const leaf of leaves) leaf.requiresGrad = true;
      const out = attention(...leaves, optionsOf(c));
      out.backward(randomTensor(out.shape, { seed: 9, dtype: 'bf16' }));
      return [out, ...leaves.map((leaf) => leaf.grad as Tensor)].map(values);
    };
    expect(run()).toEqual(run());
  });

  it('names bad arguments in errors, and bad segments at the next read', () => {
    const c = { cu: [0, 4], heads: 6, kvHeads: 2, size: 4 };
    const [q, k, v] = inputs(c);
    const o = optionsOf(c);
    const cu = (...bounds: number[]) => ({ cuSeqlens: tensor(Int32Array.from(bounds)) });
    expect(() => attention(q, k, randomTensor([4, 3, 4]), o)).toThrow(
      'attention: v must be the shape of k=(4,2,4), got (4,3,4)',
    );
    expect(() => attention(q, k, v, { ...o, sinks: tensor(Float64Array.of(1, 2)) })).toThrow(
      'attention: sinks must be (H)=(6), got (2)',
    );
    expect(() => attention(q, randomTensor([4, 2, 5]), v, o)).toThrow(
      'attention: k must be (N,Hkv,D)=(4,2,4), got (4,2,5)',
    );
    expect(() => attention(randomTensor([4, 5, 4]), k, v, o)).toThrow(
      'attention: the 5 heads of q cannot share the 2 heads of k and v evenly',
    );
    expect(() => attention(q, randomTensor([4, 2, 4], { dtype: 'f32' }), v, o)).toThrow(
      'attention: k must be f64, got f32',
    );
    expect(() => attention(q, k, v, { cuSeqlens: tensor(Float32Array.of(0, 4)) })).toThrow(
      'attention: cuSeqlens must be i32, got f32',
    );
    expect(() => attention(q, k, v, { ...o, lengths: tensor(Int32Array.of(4, 4)) })).toThrow(
      'attention: lengths must be (B)=(1), got (2)',
    );
    // The boundaries of segments are i32; an expanded row is that long without memory.
    const many = expand(randomTensor([1, 2, 4]), [2 ** 31, 2, 4]);
    expect(() => attention(many, many, many, o)).toThrow(
      'attention: q has 2147483648 rows, at most 2147483647',
    );
    expect(() => attention(q, k, v, { ...o, window: -1 })).toThrow(
      'attention: window must be >= 0',
    );
    expect(() => attention(q, k, v, { ...o, softcap: -1 })).toThrow(
      'attention: softcap must be >= 0',
    );
    expect(() => attention(q, k, v, cu(0, 3)).dataSync()).toThrow(
      'cu_seqlens must rise from 0 to the 4 rows, got 0 to 3',
    );
    expect(() => attention(q, k, v, cu(0, 3, 2, 4)).dataSync()).toThrow(
      'cu_seqlens falls from 3 to 2',
    );
    expect(() =>
      attention(q, k, v, { ...o, lengths: tensor(Int32Array.of(5)) }).dataSync(),
    ).toThrow('length 5 of segment 0 is not within its 4 rows');
    const queries = (...bounds: number[]) => ({ cuQueries: tensor(Int32Array.from(bounds)) });
    expect(() => attention(q, k, v, { ...o, ...queries(0, 2, 4) })).toThrow(
      'attention: cuQueries must be (B+1)=(2), got (3)',
    );
    expect(() => attention(q, k, v, { ...o, ...queries(0, 3) }).dataSync()).toThrow(
      'cu_queries must rise from 0 to the 4 rows of q, got 0 to 3',
    );
  });
});

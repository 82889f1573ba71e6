/**
 * The consistency term over the whole range of its temperature: values and gradients of the fused and the plain forms against loops
 * in f64, exactly 0 for equal logits and never below, and the limits by the name of the option.
 */
import { describe, expect, it } from 'vitest';
import { ArgumentError, UnsupportedError } from '../../lib/errors.ts';
import { BaLoraLoss, NluLoss } from '../../lib/losses/balora.ts';
import { nluConsistencyLoss } from '../../lib/losses/nlu_terms.ts';
import { consistencyLoss } from '../../lib/losses/plain.ts';
import { headLosses, mul, teacherSummary } from '../../lib/ops/index.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';
import { resolveRegularizers } from '../../lib/train/regularizers.ts';
import { values } from '../support/compare.ts';
import { kTestDevice } from '../support/device.ts';
import { relativeError } from '../support/fixtures.ts';
import { randomTensor } from '../support/gradcheck.ts';

const kTemperatures = [0.05, 0.5, 1, 2, 3, 30, 300, 1e4];
const kSpreads = [0.01, 0.3, 3];
// On the processor more rows and tokens than a chunk by token, a group and a block have.
const [kRows, kVocabulary, kChannels] = kTestDevice === 'cpu' ? [36, 1201, 32] : [5, 331, 16];

/** ln softmax(x / T) of a row. */
function logSoftmaxOf(x: Float64Array, temperature: number): Float64Array {
  const scaled = x.map((v) => v / temperature);
  const most = scaled.reduce((a, b) => Math.max(a, b));
  const sum = scaled.reduce((total, v) => total + Math.exp(v - most), 0);
  return scaled.map((v) => v - most - Math.log(sum));
}

/** q (e^u - 1 - u), the part of an outcome in KL(q || p), by its series where u is small. */
function part(logQ: number, logP: number): number {
  const u = logP - logQ;
  const q = Math.exp(logQ);
  if (Math.abs(u) < 1e-3) return q * u * u * (1 / 2 + u / 6 + (u * u) / 24);
  return Math.exp(logP) - q - q * u;
}

/** T (p - q), the slope of T^2 KL(q || p) by a logit of p. */
function slope(logQ: number, logP: number, temperature: number): number {
  const u = logP - logQ;
  const difference =
    Math.abs(u) < 1 ? Math.exp(logQ) * Math.expm1(u) : Math.exp(logP) - Math.exp(logQ);
  return temperature * difference;
}

/** T^2 KL of rows of logits z and y, a mean, and its gradient by z. */
function plainLoop(z: Float64Array, y: Float64Array, columns: number, temperature: number) {
  const rows = z.length / columns;
  const gradient = new Float64Array(z.length);
  let value = 0;
  for (let row = 0; row < rows; ++row) {
    const [first, end] = [row * columns, (row + 1) * columns];
    const logP = logSoftmaxOf(z.subarray(first, end), temperature);
    const logQ = logSoftmaxOf(y.subarray(first, end), temperature);
    for (let v = 0; v < columns; ++v) {
      const [q, p] = [logQ[v] as number, logP[v] as number];
      value += (temperature ** 2 * part(q, p)) / rows;
      gradient[first + v] = slope(q, p, temperature) / rows;
    }
  }
  return { value, gradient };
}

/** a (M,K) b^T, b (N,K), or a b with b (K,N). */
function product(a: Float64Array, b: Float64Array, [m, n, k]: number[], turned: boolean) {
  const out = new Float64Array((m as number) * (n as number));
  const [cols, inner] = [n as number, k as number];
  for (let i = 0; i < (m as number); ++i) {
    for (let j = 0; j < cols; ++j) {
      let sum = 0;
      for (let c = 0; c < inner; ++c) {
        sum += (a[i * inner + c] as number) * (b[turned ? j * inner + c : c * cols + j] as number);
      }
      out[i * cols + j] = sum;
    }
  }
  return out;
}

const f64Of = (x: Tensor): Float64Array => Float64Array.from(values(x));

/** Hidden states of a student and of a teacher that is `spread` away, and a head. */
function inputs(dtype: 'f32' | 'bf16', spread: number) {
  const shape = [kRows, kChannels];
  const hidden = noGrad(() => randomTensor(shape, { seed: 1 }).to(dtype)).detach();
  const [near, away] = [f64Of(hidden), f64Of(randomTensor(shape, { seed: 2 }))];
  const moved = Float32Array.from(near, (v, i) => v + spread * (away[i] as number));
  const teacher = noGrad(() => tensor(moved, { shape }).to(dtype)).detach();
  const head = noGrad(() => randomTensor([kVocabulary, kChannels], { seed: 3 }).to(dtype)).detach();
  const logits = (x: Tensor): Float64Array =>
    product(f64Of(x), f64Of(head), [kRows, kVocabulary, kChannels], true);
  return { hidden, teacher, head, z: logits(hidden), y: logits(teacher) };
}

// Most logits hardly differ and the largest does, as after training, so that its difference is far from the mean one.
describe.each([
  [3, 0.01],
  [10, 0.01],
  [10, 0.3],
])('the largest logit is %d higher, the others %d apart', (higher, spread) => {
  const [vocabulary, channels] = kTestDevice === 'cpu' ? [49152, 16] : [4096, 16];
  const weights = new Float32Array(vocabulary * channels);
  const [z, away] = [6, 7].map((seed) => f64Of(randomTensor([vocabulary], { seed })));
  const most = (z as Float64Array).reduce(
    (best, v, i, all) => (v > (all[best] as number) ? i : best),
    0,
  );
  for (let v = 0; v < vocabulary; ++v) {
    weights[v * channels] = 3 * (z?.[v] as number);
    weights[v * channels + 1] = v === most ? higher : spread * (away?.[v] as number);
  }
  const column = (c: number): Float64Array =>
    Float64Array.from({ length: vocabulary }, (_, v) => weights[v * channels + c] as number);
  const of = column(0);
  const ofTeacher = Float64Array.from(column(1), (v, i) => Math.fround(v + (of[i] as number)));
  const unit = (...ones: number[]): Tensor =>
    tensor(
      Float32Array.from({ length: channels }, (_, c) => Number(ones.includes(c))),
      {
        shape: [1, channels],
      },
    );

  it.each(kTemperatures)('T %d', (temperature) => {
    const expected = plainLoop(of, ofTeacher, vocabulary, temperature);
    const hidden = unit(0);
    hidden.requiresGrad = true;
    const { loss } = headLosses({
      ...{ hidden, teacher: unit(0, 1), head: tensor(weights, { shape: [vocabulary, channels] }) },
      ...{ temperature, entropyTopK: -1, consistencyScale: 1 },
    });
    loss.backward();
    expect(Math.abs(loss.itemSync() / expected.value - 1)).toBeLessThan(1e-3);
    const dims = [1, channels, vocabulary];
    const gradient = product(expected.gradient, Float64Array.from(weights), dims, false);
    expect(relativeError(f64Of(hidden.grad as Tensor), gradient)).toBeLessThan(1e-3);
  });
});

describe.each(kSpreads)('logits that are %d apart', (spread) => {
  // Gradients in bf16 are rounded to 8 bits before a product and after it.
  it.each([
    ['f32', 1e-4],
    ['bf16', 8e-3],
  ] as const)('fused, %s', (dtype, tolerance) => {
    const { hidden, teacher, head, z, y } = inputs(dtype, spread);
    for (const temperature of kTemperatures) {
      const expected = plainLoop(z, y, kVocabulary, temperature);
      const student = hidden.detach();
      student.requiresGrad = true;
      const { loss } = headLosses({
        ...{ hidden: student, teacher, head, temperature },
        ...{ entropyTopK: -1, consistencyScale: 1 / kRows },
      });
      loss.backward();
      const at = `T ${temperature}`;
      expect(Math.abs(loss.itemSync() / expected.value - 1), at).toBeLessThan(1e-3);
      const dims = [kRows, kChannels, kVocabulary];
      const gradient = product(expected.gradient, f64Of(head), dims, false);
      expect(relativeError(f64Of(student.grad as Tensor), gradient), at).toBeLessThan(tolerance);
    }
  });

  const [rows, columns] = [6, 50];
  const shape = [rows, columns];
  const pair = (dtype: 'f32' | 'f64') => {
    const z = noGrad(() => mul(randomTensor(shape, { seed: 4 }), 3).to(dtype)).detach();
    const away = f64Of(randomTensor(shape, { seed: 5 }));
    const moved = f64Of(z).map((v, i) => v + spread * (away[i] as number));
    const y = noGrad(() => tensor(moved, { shape }).to(dtype)).detach();
    z.requiresGrad = true;
    return { z, y };
  };
  it.each(['f32', 'f64'] as const)('plain, %s', (dtype) => {
    for (const temperature of kTemperatures) {
      for (const form of [consistencyLoss, nluConsistencyLoss]) {
        const { z, y } = pair(dtype);
        const expected = plainLoop(f64Of(z), f64Of(y), columns, temperature);
        const loss = form(z, y, { temperature });
        expect(loss.dtype).toBe(dtype);
        loss.backward();
        const at = `T ${temperature}`;
        expect(Math.abs(loss.itemSync() / expected.value - 1), at).toBeLessThan(1e-3);
        const found = f64Of(z.grad as Tensor);
        expect(relativeError(found, expected.gradient), at).toBeLessThan(1e-3);
      }
    }
  });

  it.each(['f32', 'f64'] as const)('independent labels, %s', (dtype) => {
    for (const temperature of kTemperatures) {
      const { z, y } = pair(dtype);
      const [of, ofTeacher] = [f64Of(z), f64Of(y)];
      let value = 0;
      for (let i = 0; i < of.length; ++i) {
        const [a, b] = [of[i] as number, ofTeacher[i] as number];
        const outcomes = [a, b].map((v) => logSoftmaxOf(Float64Array.of(v, 0), temperature));
        const [p, q] = outcomes as [Float64Array, Float64Array];
        for (let k = 0; k < 2; ++k) value += part(q[k] as number, p[k] as number);
      }
      const options = { temperature, problemType: 'multi_label_classification' } as const;
      const found = nluConsistencyLoss(z, y, options).itemSync();
      const expected = (temperature ** 2 * value) / rows;
      expect(Math.abs(found / expected - 1), `T ${temperature}`).toBeLessThan(1e-3);
    }
  });
});

describe('equal logits', () => {
  const softcaps = [0, 20];
  it.each((['f32', 'bf16', 'f64'] as const).flatMap((d) => softcaps.map((s) => [d, s] as const)))(
    'are exactly 0 apart, with a gradient of exactly 0: %s, softcap %d',
    (dtype, softcap) => {
      // A trained head beside a frozen copy of it; rows of which the products take apart some.
      for (const rows of kTestDevice === 'cpu' ? [1, 3, 50] : [3]) {
        const [vocabulary, channels] = kTestDevice === 'cpu' ? [301, 200] : [70, 24];
        const narrow = (shape: number[], seed: number) =>
          noGrad(() => randomTensor(shape, { seed }).to(dtype)).detach();
        const hidden = narrow([rows, channels], 1);
        const head = narrow([vocabulary, channels], 2);
        const copy = narrow([vocabulary, channels], 2).freeze();
        hidden.requiresGrad = true;
        head.requiresGrad = true;
        for (const temperature of [1, 2, 300]) {
          hidden.grad = null;
          head.grad = null;
          const { loss } = headLosses({
            ...{ hidden, teacher: hidden.detach(), head, teacherHead: copy, temperature, softcap },
            ...{ entropyTopK: -1, consistencyScale: 1 },
          });
          loss.backward();
          const at = `T ${temperature}, ${rows} rows`;
          expect(loss.itemSync(), at).toBe(0);
          for (const x of [hidden, head]) {
            expect(
              values(x.grad as Tensor).every((v) => v === 0),
              at,
            ).toBe(true);
          }
        }
      }
    },
  );

  it('are 0 apart in the plain forms', () => {
    const z = noGrad(() => randomTensor([4, 9], { seed: 1 }).to('f32')).detach();
    const multi = { problemType: 'multi_label_classification' } as const;
    for (const temperature of kTemperatures) {
      expect(consistencyLoss(z, z, { temperature }).itemSync()).toBe(0);
      expect(nluConsistencyLoss(z, z, { temperature, ...multi }).itemSync()).toBe(0);
    }
  });

  it('that differ by a constant are not below 0', () => {
    const [vocabulary, rows] = [500, 4];
    const z = noGrad(() => randomTensor([rows, vocabulary], { seed: 1 }).to('f32')).detach();
    const identity = Float32Array.from({ length: vocabulary ** 2 }, (_, i) =>
      Number(i % (vocabulary + 1) === 0),
    );
    const head = tensor(identity, { shape: [vocabulary, vocabulary] });
    for (const temperature of kTemperatures) {
      const teacher = noGrad(() =>
        tensor(
          Float32Array.from(f64Of(z), (v) => v + 5),
          { shape: z.shape },
        ),
      );
      const scales = { entropyTopK: -1, consistencyScale: 1 };
      const { loss } = headLosses({ hidden: z, teacher, head, temperature, ...scales });
      expect(loss.itemSync()).toBeGreaterThanOrEqual(0);
      expect(loss.itemSync()).toBeLessThan(1e-9);
    }
  });
});

describe('a temperature beyond the limit', () => {
  const z = randomTensor([2, 3], { seed: 1 });
  const head = { weight: z };
  const of: Record<string, (temperature: number) => unknown> = {
    consistencyLoss: (temperature) => consistencyLoss(z, z, { temperature }),
    nluConsistencyLoss: (temperature) =>
      nluConsistencyLoss(z, z, { temperature, problemType: 'multi_label_classification' }),
    NluLoss: (temperature) => new NluLoss({ temperature }),
    BaLoraLoss: (temperature) => new BaLoraLoss(head, { temperature }),
    headLosses: (temperature) => headLosses({ hidden: z, teacher: z, head: z, temperature }),
    'options of a run': (temperature) => resolveRegularizers({ temperature }, 'causal-lm'),
  };
  it.each(Object.keys(of))('is refused by %s', (name) => {
    const call = of[name] as (temperature: number) => unknown;
    call(1e4);
    let error: unknown;
    try {
      call(10001);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(ArgumentError);
    expect(String(error)).toMatch(/temperature.*10000.*10001/);
    expect(() => call(1e6)).toThrow(ArgumentError);
    expect(() => call(Number.NaN)).toThrow(ArgumentError);
  });

  it('is refused by a summary of the teacher, which cancels earlier', () => {
    teacherSummary(z, { head: z, temperature: 32 });
    expect(() => teacherSummary(z, { head: z, temperature: 33 })).toThrow(UnsupportedError);
    expect(() => teacherSummary(z, { head: z, temperature: 33 })).toThrow(/at most 32, got 33/);
  });
});

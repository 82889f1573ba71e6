import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  adafactorStep,
  adamwRate,
  adamwStep,
  adamwSteps,
  add_,
  clipCoefficient,
  copy_,
  exp,
  fill_,
  gradNorm,
  mul,
  permute,
  scale_,
  sgdStep,
  sum,
  zero_,
  zeros,
} from '../../lib/ops/index.ts';
import { getNumThreads, setNumThreads } from '../../lib/runtime.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { fixturePath } from '../support/fixtures.ts';
import { randomTensor } from '../support/gradcheck.ts';
import { readFloatTensors } from '../support/read_safetensors.ts';

describe('writes in place', () => {
  it('copy_, fill_, zero_ and add_ in every dtype, and through views', () => {
    for (const dtype of kFloatTypes) {
      for (const size of [1, 31, 33, 123]) {
        const source = randomTensor([size], { seed: 1 });
        const x = zeros([size], { dtype });
        copy_(x, source);
        expectClose(x, values(source), roundingOf(dtype));
        add_(x, source, -0.5);
        expectClose(
          x,
          values(source).map((v) => v / 2),
          2 * roundingOf(dtype),
        );
        fill_(x, 3);
        expectClose(x, new Float64Array(size).fill(3), 0);
        zero_(x);
        expectClose(x, new Float64Array(size), 0);
      }
    }
    const x = zeros([2, 3]);
    copy_(
      permute(x, [1, 0]),
      tensor([
        [1, 2],
        [3, 4],
        [5, 6],
      ]),
    );
    expectClose(x, [1, 3, 5, 2, 4, 6], 0);
  });

  it('adds a bf16 gradient into an f32 sum without rounding the sum', () => {
    const x = tensor([1024]);
    const tiny = tensor([2 ** -8], { dtype: 'bf16' });
    for (let i = 0; i < 100; ++i) add_(x, tiny);
    expect(x.itemSync()).toBe(1024 + 100 / 256);
  });

  it('are refused where they would corrupt a gradient', () => {
    const leaf = randomTensor([3], { requiresGrad: true });
    expect(() => zero_(leaf)).toThrow(
      'fill_: a tensor that wants a gradient cannot be overwritten',
    );
    noGrad(() => zero_(leaf));
    const x = randomTensor([3]);
    const y = sum(mul(leaf, x));
    zero_(x);
    expect(() => y.backward()).toThrow('was overwritten in place since');
    expect(() => zero_(randomTensor([2]).freeze())).toThrow('frozen');
    const result = exp(leaf);
    expect(() => add_(result, x)).toThrow('add_: a tensor that wants a gradient');
  });

  it('refuse bad arguments by name', () => {
    const x = zeros([3]);
    expect(() => copy_(x, zeros([2]))).toThrow('copy_: source must be the shape of x=(3), got (2)');
    expect(() => scale_(x, tensor(1))).toThrow('scale_: coefficient must be f64, got f32');
    expect(() => add_(permute(zeros([2, 3]), [1, 0]), zeros([3, 2]))).toThrow('must be contiguous');
  });
});

describe('norms and clipping', () => {
  it('treat all tensors as one vector, in f64', () => {
    for (const dtype of kFloatTypes) {
      const grads = [
        randomTensor([33], { seed: 1, dtype }),
        randomTensor([5, 7], { seed: 2, dtype }),
      ];
      const all = grads.flatMap((g) => Array.from(values(g)));
      expectClose(gradNorm(grads), [Math.hypot(...all)], 1e-14);
      expectClose(gradNorm(grads, 1), [all.reduce((a, b) => a + Math.abs(b), 0)], 1e-14);
      expectClose(gradNorm(grads, 'inf'), [Math.max(...all.map(Math.abs))], 0);
    }
    const long = tensor(new Float32Array(1_000_003).fill(0.1));
    expectClose(gradNorm([long]), [Math.fround(0.1) * Math.sqrt(1_000_003)], 1e-12);
  });

  it('return NaN and infinity unchanged', () => {
    for (const kind of [1, 2, 'inf'] as const) {
      expect(gradNorm([tensor([1, NaN]), tensor([5])], kind).itemSync()).toBeNaN();
      expect(gradNorm([tensor([1, -Infinity])], kind).itemSync()).toBe(Infinity);
    }
    expect(clipCoefficient(gradNorm([tensor([NaN])]), 1).itemSync()).toBeNaN();
    expect(clipCoefficient(gradNorm([tensor([Infinity])]), 1).itemSync()).toBe(0);
  });

  it('refuse bad arguments by name', () => {
    expect(() => gradNorm([])).toThrow('grad_norm: no tensor given');
    expect(() => gradNorm([zeros([2])], 3 as 2)).toThrow(
      'grad_norm: the norm must be 1, 2 or inf, got 3',
    );
    expect(() => clipCoefficient(gradNorm([zeros([2])]), 0)).toThrow(
      'clip_coefficient: maxNorm must be > 0',
    );
  });
});

interface Group {
  params: string[];
  lr: number;
  weight_decay: number;
}
interface GoldenCase {
  name: string;
  steps: number;
  lrs?: number[];
  params: {
    optimizer: string;
    lr: number;
    betas: [number, number];
    eps: number;
    weight_decay: number;
    momentum: number;
    dampening: number;
    nesterov: boolean;
    groups?: Group[];
  };
}

describe('steps against torch', () => {
  const folder = 'optim/optim';
  const read = () => ({
    json: JSON.parse(readFileSync(fixturePath(`${folder}.json`), 'utf8')),
    arrays: readFloatTensors(fixturePath(`${folder}.safetensors`)),
  });

  /** The parameter after each step, as one (steps, size) array. */
  function trajectory(golden: GoldenCase, name: string, dtype: 'f32' | 'f64'): Float64Array {
    const { arrays } = read();
    const start = arrays.get(`init/${name}`) as Float64Array;
    const grads = arrays.get(`grads/${name}`) as Float64Array;
    const size = start.length;
    const { optimizer, momentum, dampening, nesterov, betas, eps, groups } = golden.params;
    const group = groups?.find(({ params }) => params.includes(name));
    const [param, m, v] = [
      tensor(start, { dtype }),
      zeros([size], { dtype }),
      zeros([size], { dtype }),
    ];
    const out = new Float64Array(golden.steps * size);
    for (let s = 0; s < golden.steps; ++s) {
      const grad = tensor(grads.slice(s * size, (s + 1) * size), { dtype });
      const lr = golden.lrs?.[s] ?? group?.lr ?? golden.params.lr;
      const weightDecay = group?.weight_decay ?? golden.params.weight_decay;
      if (optimizer === 'adamw') {
        adamwStep(param, grad, { m, v, step: s + 1, lr, betas, eps, weightDecay });
      } else {
        const buffer = momentum ? m : null;
        sgdStep(param, grad, {
          lr,
          momentum,
          dampening,
          nesterov,
          weightDecay,
          buffer,
          first: s === 0,
        });
      }
      out.set(values(param), s * size);
    }
    return out;
  }

  const { json } = read();
  const cases = (json.cases as GoldenCase[]).filter(({ name }) => /^(adamw|sgd)/.test(name));
  it('have enough golden cases', () => expect(cases.length).toBeGreaterThanOrEqual(10));
  for (const golden of cases) {
    it(`${golden.name} follows the reference in f64 and f32`, () => {
      const { arrays } = read();
      for (const name of ['w', 'b', 'x']) {
        const want = arrays.get(`${golden.name}/${name}`) as Float64Array;
        const largest = Math.max(...want.map(Math.abs));
        for (const [dtype, tolerance] of [
          ['f64', 1e-12],
          ['f32', 2e-6],
        ] as const) {
          const got = trajectory(golden, name, dtype);
          got.forEach((value, i) => {
            const error = Math.abs(value - (want[i] as number));
            const scale =
              dtype === 'f64' ? Math.max(Math.abs(want[i] as number), 1e-3 * largest) : largest;
            if (!(error <= tolerance * scale)) {
              expect.fail(`${name} ${dtype} element ${i}: ${value}, reference ${want[i]}`);
            }
          });
        }
      }
    });
  }

  it('clip by the norm and coefficient of the reference, without a copy to the host', () => {
    const { arrays } = read();
    const gradients = (name: string): Tensor[] => {
      if (name === 'zeros') return [zeros([6, 5]), zeros([7])];
      if (name === 'one NaN') return [zeros([5]), tensor([1, NaN, 2])];
      return ['w', 'b', 'x'].map((p) =>
        tensor(arrays.get(`${name}/${p}`) as Float64Array, { dtype: 'f32' }),
      );
    };
    for (const c of json.clip as Record<string, string | number>[]) {
      const kind = c.norm_type === 'inf' ? 'inf' : (Number(c.norm_type) as 1 | 2);
      const grads = gradients(c.grads as string);
      const norm = gradNorm(grads, kind);
      const coefficient = clipCoefficient(norm, c.max_norm as number);
      const first = grads[0] as Tensor;
      const before = values(first);
      scale_(first, coefficient);
      if (c.coefficient === 'nan') {
        expect([norm.itemSync(), coefficient.itemSync(), values(first)[0]]).toEqual([
          NaN,
          NaN,
          NaN,
        ]);
        continue;
      }
      const [total, factor] = [c.total_norm as number, c.coefficient as number];
      expect(Math.abs(norm.itemSync() - total)).toBeLessThanOrEqual(1e-6 * total);
      expect(Math.abs(coefficient.itemSync() - factor)).toBeLessThanOrEqual(1e-6 * factor);
      const got = values(first);
      before.forEach((g, i) => {
        const error = Math.abs((got[i] as number) - g * factor);
        expect(error).toBeLessThanOrEqual(1e-6 * Math.abs(g * factor));
      });
    }
  });
});

/** One Adafactor step of a (rows, columns) matrix or, without rows, of a vector, in plain loops. */
function adafactorDefinition(
  { p, g, row, column, m }: Record<'p' | 'g' | 'row' | 'column' | 'm', Float64Array>,
  rows: number,
  { lr, beta1, beta2, eps, clip, weightDecay, scaleFloor }: typeof kAdafactor,
): void {
  const columns = p.length / rows;
  const rms = (x: Float64Array) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length);
  const rate = lr * Math.max(scaleFloor, rms(p));
  const squares = g.map((v) => v * v + eps);
  const blend = (old: number, fresh: number) => beta2 * old + (1 - beta2) * fresh;
  const u = new Float64Array(p.length);
  if (column.length === 0) {
    row.forEach((v, i) => {
      row[i] = blend(v, squares[i] as number);
      u[i] = (g[i] as number) / Math.sqrt(row[i] as number);
    });
  } else {
    for (let r = 0; r < rows; ++r) {
      let sum = 0;
      for (let c = 0; c < columns; ++c) sum += squares[r * columns + c] as number;
      row[r] = blend(row[r] as number, sum / columns);
    }
    for (let c = 0; c < columns; ++c) {
      let sum = 0;
      for (let r = 0; r < rows; ++r) sum += squares[r * columns + c] as number;
      column[c] = blend(column[c] as number, sum / rows);
    }
    const mean = row.reduce((sum, v) => sum + v, 0) / rows;
    u.forEach((_, i) => {
      const [r, c] = [row[Math.floor(i / columns)] as number, column[i % columns] as number];
      u[i] = (g[i] as number) / Math.sqrt(r / mean) / Math.sqrt(c);
    });
  }
  const factor = rate / Math.max(1, rms(u) / clip);
  p.forEach((v, i) => {
    m[i] = beta1 * (m[i] as number) + (1 - beta1) * factor * (u[i] as number);
    p[i] = v * (1 - weightDecay * rate) - (m[i] as number);
  });
}

const kAdafactor = {
  lr: 0.3,
  beta1: 0.6,
  beta2: 0.7,
  eps: 1e-3,
  clip: 0.5,
  weightDecay: 0.1,
  scaleFloor: 1e-2,
};

describe('Adafactor steps', () => {
  const positive = (shape: number[], seed: number, dtype: 'f32' | 'f64') =>
    tensor(values(randomTensor(shape, { seed })).map(Math.abs), { shape, dtype });

  for (const dtype of ['f64', 'f32'] as const) {
    for (const shape of [[1], [123], [1, 31], [33, 123], [31, 1], [700, 200]]) {
      it(`follow the definition in ${dtype} for (${shape})`, () => {
        const [p, g, m] = [1, 2, 3].map((seed) => randomTensor(shape, { seed, dtype })) as [
          Tensor,
          Tensor,
          Tensor,
        ];
        const matrix = shape.length === 2;
        const row = positive(matrix ? shape.slice(0, 1) : shape, 4, dtype);
        const column = matrix ? positive(shape.slice(1), 5, dtype) : null;
        const expected = {
          p: values(p),
          g: values(g).map((v) => 0.5 * v),
          row: values(row),
          column: column ? values(column) : new Float64Array(),
          m: values(m),
        };
        const coefficient = tensor(Float64Array.of(0.5), { shape: [] });
        adafactorStep(p, g, { row, column, m, coefficient, ...kAdafactor });
        adafactorDefinition(expected, matrix ? (shape[0] as number) : 1, kAdafactor);
        const tolerance = dtype === 'f64' ? 1e-14 : 1e-6;
        expectClose(p, expected.p, tolerance);
        expectClose(row, expected.row, tolerance);
        expectClose(m, expected.m, tolerance);
        if (column) expectClose(column, expected.column, tolerance);
      });
    }
  }

  it('have the same bits with any number of threads', () => {
    const before = getNumThreads();
    const run = (threads: number): Float64Array[] => {
      setNumThreads(threads);
      const shape = [301, 517];
      const p = randomTensor(shape, { seed: 1, dtype: 'f32' });
      const row = zeros([301]);
      const column = zeros([517]);
      const grad = randomTensor(shape, { seed: 2, dtype: 'f32' });
      adafactorStep(p, grad, { row, column, m: null, ...kAdafactor });
      return [values(p), values(row), values(column)];
    };
    try {
      expect(run(3)).toEqual(run(1));
    } finally {
      setNumThreads(before);
    }
  });

  it('refuse bad arguments by name', () => {
    const options = { row: zeros([2]), column: zeros([3]), m: null, ...kAdafactor };
    const [p, g] = [zeros([2, 3]), zeros([2, 3])];
    const refused = (more: object, message: string, param = p) =>
      expect(() => adafactorStep(param, g, { ...options, ...more })).toThrow(message);
    refused({ row: zeros([3]) }, 'adafactor_step: row must be (2), got (3)');
    refused({ column: zeros([2]) }, 'adafactor_step: column must be (3), got (2)');
    refused({ column: null }, 'adafactor_step: row must be (2,3), got (2)');
    refused({ m: zeros([2]) }, 'adafactor_step: m must be (2,3), got (2)');
    refused({ beta2: 1 }, 'adafactor_step: beta2 must be in [0,1), got 1');
    refused({ eps: 0 }, 'adafactor_step: eps must be > 0, got 0');
    refused({ clip: 0 }, 'adafactor_step: clip must be > 0, got 0');
    refused(
      {},
      'adafactor_step: param must be f32 or f64, got bf16',
      zeros([2, 3], { dtype: 'bf16' }),
    );
  });
});

describe('optimiser steps', () => {
  it('multiply the gradient by the coefficient', () => {
    const state = () => ({ m: zeros([5]), v: zeros([5]) });
    const grad = randomTensor([5], { seed: 1, dtype: 'f32' });
    const options = { step: 1, lr: 0.1, betas: [0.9, 0.999] as const, eps: 1e-2, weightDecay: 0 };
    const coefficient = tensor(Float64Array.of(0.25), { shape: [] });
    const [a, b] = [zeros([5]), zeros([5])];
    adamwStep(a, grad, { ...options, ...state(), coefficient });
    adamwStep(b, mul(grad, 0.25), { ...options, ...state() });
    expectClose(a, values(b), 0);
    sgdStep(a, grad, { lr: 1, coefficient });
    sgdStep(b, mul(grad, 0.25), { lr: 1 });
    expectClose(a, values(b), 0);
  });

  // The definition has torch's order of operations in plain loops, in f64. The sizes are empty, below and above a vector
  // register, and large enough for several threads.
  it('of many parameters in one op follow the definition, and equal bit for bit those of each alone', () => {
    const betas = [0.9, 0.99] as const;
    const [eps, scale] = [1e-6, 0.5];
    const coefficient = tensor(Float64Array.of(scale), { shape: [] });
    const rates = [
      [0.01, 3],
      [0.16, 1],
    ].map(([lr, step]) => adamwRate(lr as number, step as number, betas));
    const sizes = [[33], [0], [1], [3, 41], [20001], [31], [5, 0], [123]];
    const make = (dtype: 'f32' | 'f64') =>
      sizes.map((shape, i) => ({
        param: randomTensor(shape, { seed: 4 * i, dtype }),
        grad: randomTensor(shape, { seed: 4 * i + 1, dtype }),
        m: randomTensor(shape, { seed: 4 * i + 2, dtype }),
        v: mul(randomTensor(shape, { seed: 4 * i + 3, dtype }), 0),
        rate: tensor(rates[i % 2] as Float64Array),
        weightDecay: i % 3 === 0 ? 0.1 : 0,
      }));
    for (const dtype of ['f32', 'f64'] as const) {
      const [many, each, start] = [make(dtype), make(dtype), make(dtype)];
      adamwSteps(many, { betas, eps, coefficient });
      for (const one of each) adamwSteps([one], { betas, eps, coefficient });
      many.forEach((one, i) => {
        for (const key of ['param', 'm', 'v'] as const) {
          expect(values(one[key])).toEqual(values((each[i] as typeof one)[key]));
        }
        const before = start[i] as typeof one;
        const [p, g, m] = [before.param, before.grad, before.m].map(values) as Float64Array[];
        const [lr, step, root] = rates[i % 2] as Float64Array as unknown as number[];
        const expected = Float64Array.from(p as Float64Array, (value, j) => {
          const gradient = ((g as Float64Array)[j] as number) * scale;
          const first = betas[0] * ((m as Float64Array)[j] as number) + (1 - betas[0]) * gradient;
          const second = (1 - betas[1]) * gradient ** 2;
          const decayed = value * (1 - (lr as number) * one.weightDecay);
          return (
            decayed - ((step as number) * first) / (Math.sqrt(second) * (root as number) + eps)
          );
        });
        expectClose(one.param, expected, dtype === 'f64' ? 1e-13 : 2e-6);
      });
    }
    adamwSteps([], { betas, eps, coefficient });
    const [one] = make('f32');
    expect(() => adamwSteps([one, one] as never, { betas, eps })).toThrow(
      'adamw_step: a parameter is given twice',
    );
    const other = { ...(one as object), grad: zeros([2]) };
    expect(() => adamwSteps([other] as never, { betas, eps })).toThrow(
      'adamw_step: grad must be the shape of param=(33), got (2)',
    );
  });

  it('refuse bad arguments by name', () => {
    const options = {
      m: zeros([2]),
      v: zeros([2]),
      step: 1,
      lr: 1,
      betas: [0.9, 0.99] as const,
      eps: 0,
      weightDecay: 0,
    };
    const p = zeros([2]);
    expect(() => adamwStep(p, zeros([3]), options)).toThrow(
      'adamw_step: grad must be the shape of param=(2), got (3)',
    );
    expect(() => adamwStep(p, zeros([2], { dtype: 'f64' }), options)).toThrow(
      'adamw_step: grad must be f32, got f64',
    );
    expect(() => adamwStep(zeros([2], { dtype: 'bf16' }), p, options)).toThrow(
      'adamw_step: param must be f32 or f64, got bf16',
    );
    expect(() => adamwStep(p, p, { ...options, step: 0 })).toThrow(
      'adamw_step: step must be >= 1, got 0',
    );
    expect(() => adamwStep(p, p, { ...options, betas: [1, 0.9] })).toThrow(
      'adamw_step: the betas must be in [0,1)',
    );
    expect(() => sgdStep(p, p, { lr: 1, momentum: 0.9 })).toThrow(
      'sgd_step: momentum needs a buffer',
    );
    expect(() => sgdStep(p, p, { lr: 1, nesterov: true })).toThrow(
      'sgd_step: nesterov needs momentum',
    );
  });
});

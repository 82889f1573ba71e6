// The binding's list of functions: every op on tensors declares whether it has a gradient, and each that has one is checked in
// float64 on a small case, with views as its operands, too: here, or by testGradient in the op's own file.
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native } from '../lib/native.ts';
import * as ops from '../lib/ops/index.ts';
import { Tensor, tensor } from '../lib/tensor.ts';
import { randomTensor } from './support/gradcheck.ts';
import { type GradientCase, testGradient } from './support/gradient_check.ts';

const ints = (...values: number[]) => tensor(Int32Array.from(values));
const frozen = (shape: number[]) => randomTensor(shape, { seed: 91 });
const kLoose = { tolerance: 1e-5 };
const kHead = {
  ...{ targets: ints(4, -100, 2, 0), temperature: 2, entropyTopK: 3 },
  ...{ taskScale: 0.3, consistencyScale: 0.2, diversityScale: 0.5 },
};

/** The check of each differentiable function, by its name in the binding. */
const kChecks: Record<string, GradientCase> = {
  // Values and steps that f32 represents exactly.
  cast: [(x) => ops.mul(onGrid(x).to('f32').to('f64'), 2), [[2, 3]], { step: 2 ** -12 }],
  // To the CPU and back, where the tests run on another device.
  toDevice: [(x) => new Tensor(native.toDevice(x.handle, 'cpu')).to(x.device), [[2, 3]]],
  rmsNorm: [(x, w) => ops.rmsNorm(x, w), [[2, 5], [5]]],
  rmsNormAdd: [(x, r, w) => ops.rmsNormAdd(x, r, w), [[2, 5], [2, 5], [5]]],
  layerNorm: [(x, weight, bias) => ops.layerNorm(x, { weight, bias }), [[2, 5], [5], [5]]],
  gated: [
    (gate, up) => ops.swiglu(gate, up),
    [
      [2, 5],
      [2, 5],
    ],
  ],
  rope: [
    (x) => ops.rope(x, { cos: frozen([4, 2]), sin: frozen([4, 2]) }, ints(0, 3, 1)),
    [[3, 2, 4]],
  ],
  attention: [
    (q, k, v) => ops.attention(q, k, v, { cuSeqlens: ints(0, 2, 5) }),
    [
      [5, 2, 3],
      [5, 1, 3],
      [5, 1, 3],
    ],
  ],
  relativeAttention: [
    (q, k, v, bias) => ops.relativeAttention(q, k, v, { cuQueries: ints(0, 2, 5), bias }),
    [
      [5, 2, 3],
      [5, 2, 3],
      [5, 2, 3],
      [5, 2],
    ],
  ],
  softmax: [(x) => ops.softmax(x), [[2, 5]]],
  logSoftmax: [(x) => ops.logSoftmax(x), [[2, 5]]],
  crossEntropy: [(x) => ops.crossEntropy(x, ints(4, -100, 1)), [[3, 5]]],
  matmul: [
    (a, b) => ops.matmul(a, b),
    [
      [2, 3],
      [3, 4],
    ],
  ],
  linearGroup: [
    (x, w, a, b, outputScale, bias) =>
      ops.linear(x, w, { outputScale, bias, lowRank: [{ a, b, scale: 3 }] }),
    [[4, 3], [5, 3], [2, 3], [5, 2], [5], [5]],
  ],
  columnScale: [(x, scale, bias) => ops.columnScale(x, scale, bias), [[4, 3], [3], [3]]],
  unary: [(x) => ops.exp(x), [[2, 3]]],
  clamp: [(x) => ops.clamp(x, { low: -0.5, high: 0.5 }), [[4, 5]]],
  affine: [(x) => ops.mul(x, 3), [[2, 3]]],
  binary: [(a, b) => ops.mul(a, b), [[2, 3], [3]]],
  where: [(a, b) => ops.where(tensor(Uint8Array.of(1, 0, 1)), a, b), [[2, 3], [3]]],
  dropout: [(x) => ops.dropout(x, { p: 0.5, seed: 3 }), [[4, 5]]],
  sum: [(x) => ops.sum(x, { axis: 1 }), [[2, 3]]],
  mean: [(x) => ops.mean(x, { axis: 1 }), [[2, 3]]],
  logSumExp: [(x) => ops.logSumExp(x, { axis: 1 }), [[2, 3]]],
  variance: [(x) => ops.variance(x, { axis: 1 }), [[2, 3]]],
  max: [(x) => ops.max(x, { axis: 1 }), [[2, 3]]],
  min: [(x) => ops.min(x, { axis: 1 }), [[2, 3]]],
  contiguous: [(x) => ops.contiguous(ops.transpose(x)), [[2, 3]]],
  reshape: [(x) => ops.reshape(x, [3, 2]), [[2, 3]]],
  permute: [(x) => ops.permute(x, [1, 0]), [[2, 3]]],
  expand: [(x) => ops.expand(x, [4, 3]), [[1, 3]]],
  slice: [(x) => ops.slice(x, 1, { start: 1, stop: 3 }), [[2, 4]]],
  split: [(x) => ops.split(x, [1, 3]), [[2, 4]]],
  concatTensors: [
    (a, b) => ops.concat([a, b]),
    [
      [2, 3],
      [1, 3],
    ],
  ],
  embedding: [(weight) => ops.embedding(weight, ints(3, 0, 3)), [[4, 2]]],
  indexSelect: [(x) => ops.indexSelect(x, ints(3, 0, 3)), [[4, 2]]],
  gather: [(x) => ops.gather(x, tensor(Int32Array.of(2, 2, 0, 1), { shape: [2, 2] })), [[2, 3]]],
  scatterAdd: [
    (x, s) => ops.scatterAdd(x, tensor(Int32Array.of(2, 2, 0, 1), { shape: [2, 2] }), s),
    [
      [2, 3],
      [2, 2],
    ],
  ],
  topK: [(x) => ops.topK(x, 2).values, [[3, 5]]],
  qr: [(a) => Object.values(ops.qr(a)), [[5, 3]], kLoose],
  eigh: [(a) => Object.values(ops.eigh(ops.add(a, ops.transpose(a)))), [[4, 4]], kLoose],
  svd: [(a) => Object.values(ops.svd(a)), [[5, 3]], kLoose],
  singularValues: [(a) => ops.singularValues(a), [[5, 3]]],
  headLosses: [
    (hidden, head) => {
      const [teacher, teacherHead] = [frozen([4, 3]), frozen([7, 3])];
      const summary = ops.teacherSummary(teacher, { head: teacherHead, temperature: 2 });
      return [
        ops.headLosses({ hidden, head, teacher, teacherHead, ...kHead }).loss,
        ops.headLosses({ hidden, head: teacherHead, teacher: summary, ...kHead }).loss,
      ];
    },
    [
      [4, 3],
      [7, 3],
    ],
  ],
  svdRatioGram: [(h) => ops.svdRatioGram(h, ops.gram(frozen([7, 3])), { k: 2 }), [[4, 3]]],
  svdRatio: [
    (h, w) => ops.svdRatio(h, w, { k: 2, softcap: 3 }),
    [
      [4, 3],
      [7, 3],
    ],
  ],
};

/** x, moved to multiples of 2^-12 by adding constants. */
function onGrid(x: Tensor): Tensor {
  const values = x.dataSync() as Float64Array;
  const offsets = values.map((v) => Math.round(v * 2 ** 12) / 2 ** 12 - v);
  return ops.add(x, tensor(offsets, { shape: x.shape }));
}

/** The functions whose case stands in a test of test/ops. */
function checkedElsewhere(): string[] {
  const folder = new URL('ops/', import.meta.url);
  return readdirSync(folder)
    .map((file) => readFileSync(new URL(file, folder), 'utf8'))
    .flatMap((source) => [...source.matchAll(/^\s*testGradient\(\s*'(\w+)'/gm)])
    .map(([, name]) => name as string);
}

const named = (grad: string) =>
  native.signatures.filter((row) => row.grad === grad).map(({ name }) => name);

describe('the list of functions', () => {
  it('has a kind for each, and no op is marked as a plain function', () => {
    const kinds = new Set(native.signatures.map(({ grad }) => grad));
    expect([...kinds].sort()).toEqual(['differentiable', 'noGrad', 'plain']);
    const made = native.signatures
      .filter(({ grad }) => grad === 'plain')
      .filter(({ typescript }) => /\bHandle\b.*\): [^:]*\bHandle\b[^:]*$/.test(typescript));
    // Functions of the tape itself map tensors to tensors without being ops; that of a file returns the error of its rounding; those of
    // blocks make a frozen weight of the parts that a file has of it, and an offloaded weight has the values of the one that was given.
    const known = [
      ...['customNode', 'detach', 'fourBitWeight', 'gradOf', 'int8Weight', 'offloadWeight'],
      'writeGguf',
    ];
    expect(made.map(({ name }) => name).sort()).toEqual(known);
  });

  it('has a check for every function with a gradient, and for no other', () => {
    expect([...Object.keys(kChecks), ...checkedElsewhere()].sort()).toEqual(
      named('differentiable').sort(),
    );
  });
});

for (const [name, check] of Object.entries(kChecks)) testGradient(name, check);

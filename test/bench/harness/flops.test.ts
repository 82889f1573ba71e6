// Operations and matrix products of a step, against counts made by hand.
import { describe, expect, it } from 'vitest';
import {
  attentionFlops,
  groupsOf,
  type StepShape,
  stepProducts,
  usefulFlops,
} from '../../../bench/harness/flops.ts';
import { encoderSizes, kMiniLm, kShapes, sizesOf } from '../../../bench/harness/shapes.ts';

// C 4, F 6, one layer, V 10, two query heads and one key/value head of 2.
const kSizes = { c: 4, f: 6, layers: 1, v: 10, heads: 2, keyValueHeads: 1, d: 2 };
const kStep: StepShape = {
  sizes: kSizes,
  method: 'lora',
  ...{ rank: 1, rows: 8, supervised: 3, squaredLengths: 32, accumulation: 1 },
};

describe('usefulFlops', () => {
  // Weights: q 16, k 8, v 8, o 16, gate 24, up 24, down 24 = 120; pairs (in + out): 8+6+6+8+10+10+10 = 58.
  // The only layer is the last one: after its attention only 3 of the 8 rows are computed.
  const linear = 2 * (8 * (16 + 8 + 8) + 3 * (16 + 24 + 24 + 24));
  const attention = 2 * 32 * 4; // half of the T x T scores, for scores and for values
  const lowRank = 2 * (8 * (8 + 6 + 6) + 3 * (8 + 10 + 10 + 10));
  const belowFirst = 2 * 8 * (16 + 8 + 8);
  const head = 2 * 3 * 10 * 4;

  it('counts a LoRA step', () => {
    const student = 2 * linear + 3 * attention + 3 * lowRank - belowFirst;
    expect(usefulFlops(kStep)).toBe(student + 2 * head);
  });

  it('counts all rows in the layers before the last', () => {
    const two = usefulFlops({ ...kStep, sizes: { ...kSizes, layers: 2 } });
    const layer = 2 * (2 * 8 * 120) + 3 * attention + 3 * (2 * 8 * 58);
    expect(two - usefulFlops(kStep)).toBe(layer);
  });

  it('adds a forward pass and a head for the teacher, and multiplies by the micro-batches', () => {
    const lora = usefulFlops(kStep);
    const teacher = linear + attention + head;
    expect(usefulFlops({ ...kStep, method: 'balora' })).toBe(lora + teacher);
    expect(usefulFlops({ ...kStep, accumulation: 3 })).toBe(3 * lora);
  });

  it('has a part for the attention', () => {
    expect(attentionFlops(kStep)).toBe(3 * attention);
    expect(attentionFlops({ ...kStep, method: 'balora', accumulation: 2 })).toBe(8 * attention);
  });

  it('are about 0.82 GFLOP per token for SmolLM2-135M', () => {
    const step: StepShape = {
      sizes: sizesOf(kShapes['smollm2-135m']),
      method: 'balora',
      ...{ rank: 16, rows: 2048, supervised: 0.4 * 2048, accumulation: 1 },
      squaredLengths: 4 * 512 ** 2,
    };
    expect(usefulFlops(step) / 2048 / 1e9).toBeCloseTo(0.8, 1);
  });
});

describe('stepProducts', () => {
  it('joins linears that share an input', () => {
    expect(groupsOf(kSizes)).toEqual([
      { input: 4, outputs: [4, 2, 2], behind: false },
      { input: 4, outputs: [4], behind: true },
      { input: 4, outputs: [6, 6], behind: true },
      { input: 6, outputs: [4], behind: true },
    ]);
  });

  it('contains at least the useful operations', () => {
    const products = stepProducts({ ...kStep, method: 'balora' });
    const all = products.reduce((sum, { m, k, n, count }) => sum + 2 * m * k * n * count, 0);
    const attention = 4 * 2 * 32 * 4;
    const useful = usefulFlops({ ...kStep, method: 'balora' }) - attention;
    expect(all).toBeGreaterThanOrEqual(useful);
    expect(all).toBeLessThan(1.25 * useful); // narrow low-rank parts beside others are padded to one product
  });

  it('has no gradient of the first input, and none of a teacher in LoRA', () => {
    const products = stepProducts(kStep);
    expect(products.filter(({ k, n }) => k === 8 + 3 && n === 4)).toEqual([]); // dx of q, k, v
    const two = stepProducts({ ...kStep, sizes: { ...kSizes, layers: 2 } });
    expect(two.filter(({ k, n }) => k === 8 + 3 && n === 4).map(({ count }) => count)).toEqual([1]);
    const plainForward = products.filter(({ m, k, n }) => m === 8 && k === 4 && n === 8);
    expect(plainForward).toEqual([]); // there is only the student's, whose inner dimension includes the pairs
  });

  it('computes only the rows of the loss after the attention of the last layer', () => {
    const products = stepProducts({ ...kStep, sizes: { ...kSizes, layers: 3 } });
    const down = products.filter(({ k, n, packed }) => packed && k === 6 + 1 && n === 4);
    expect(down.map(({ m, count }) => [m, count])).toEqual([
      [8, 2],
      [3, 1],
    ]);
  });

  it('splits the rows of the head into chunks', () => {
    const sizes = { ...kSizes, v: 49152 };
    const step = { ...kStep, sizes, tokens: 2048, supervised: 1024 };
    const logits = (method: 'lora' | 'balora') =>
      stepProducts({ ...step, method }).find(({ n }) => n === 49152);
    expect(logits('lora')).toMatchObject({ m: 512, k: 4, count: 2 });
    expect(logits('balora')).toMatchObject({ m: 256, k: 4, count: 8 }); // one for the teacher beside each
  });
});

describe("an encoder's step", () => {
  // One layer like MiniLM's: C 4, F 6, two heads of 2; two labels; q, k, v, output 16 each, the mlp 24 and 24.
  const sizes = encoderSizes(
    { hidden_size: 4, intermediate_size: 6, num_hidden_layers: 1, num_attention_heads: 2 },
    2,
  );
  const step: StepShape = { ...kStep, sizes };

  it('has an mlp without a gate and bidirectional attention', () => {
    expect(groupsOf(sizes).map(({ outputs }) => outputs)).toEqual([[4, 4, 4], [4], [6], [4]]);
    const linear = 2 * (8 * 48 + 3 * (16 + 24 + 24));
    const attention = 4 * 32 * 4;
    const lowRank = 2 * (8 * 24 + 3 * (8 + 10 + 10));
    const head = 2 * 3 * 2 * 4;
    const belowFirst = 2 * 8 * 48;
    const student = 2 * linear + 3 * attention + 3 * lowRank - belowFirst;
    expect(usefulFlops(step)).toBe(student + 2 * head);
  });

  it('of MiniLM has the sizes of its configuration', () => {
    expect(encoderSizes(kMiniLm, 2)).toMatchObject({
      c: 384,
      f: 1536,
      layers: 6,
      heads: 12,
      d: 32,
    });
  });
});

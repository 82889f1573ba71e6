// The fused losses against the plain ones on random inputs, in every dtype; gradcheck; evaluation; bad arguments; memory.
import { describe, expect, it } from 'vitest';
import { UnsupportedError } from '../../lib/errors.ts';
import { BaLoraLoss } from '../../lib/losses/balora.ts';
import { EffectiveRank, effectiveRankOf } from '../../lib/losses/effective_rank.ts';
import { gramFormAllowed, HeadGram } from '../../lib/losses/head_loss.ts';
import { baLoraPlainLoss, headLogits } from '../../lib/losses/plain.ts';
import { native } from '../../lib/native.ts';
import {
  add,
  crossEntropy,
  headLosses,
  headRows,
  indexSelect,
  mul,
  neg,
  singularValues,
  sum,
  svdRatio,
  svdRatioGram,
  teacherSummary,
} from '../../lib/ops/index.ts';
import { memoryStats, resetPeakMemory, synchronizeSync } from '../../lib/runtime.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { kTestDevice } from '../support/device.ts';
import { relativeError } from '../support/fixtures.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

/** Cases of what only the CPU computes; "refuses on other devices" stands for them elsewhere. */
const onCpu = <T>(cases: readonly T[]): T[] => (kTestDevice === 'cpu' ? [...cases] : []);

const valuesOf = (t: Tensor): Float64Array => Float64Array.from(t.dataSync() as Float64Array);

/** M rows, some without a target; the regularizers use every row ('non_padding'). */
function randomBatch(rows: number, vocabulary: number) {
  const targets = Int32Array.from({ length: rows }, (_, n) =>
    n % 3 === 2 ? -100 : (n * 31) % vocabulary,
  );
  return { targets, cuSeqlens: Int32Array.of(0, rows) };
}

const weights = { consistency: 0.5, diversity: 0.3, svd: 0.4 };

describe('fused against plain', () => {
  const sizes = [
    { rows: 31, channels: 33, vocabulary: 123 },
    { rows: 123, channels: 31, vocabulary: 1025 },
    { rows: 1, channels: 8, vocabulary: 31 },
  ];
  const settings = sizes.flatMap((size) =>
    [0, 4].flatMap((softcap) => [false, true].map((trained) => ({ ...size, softcap, trained }))),
  );
  it.each(settings)(
    'M $rows, C $channels, V $vocabulary, softcap $softcap, trained $trained',
    ({ rows, channels, vocabulary, softcap, trained }) => {
      const make = (shape: number[], seed: number, requiresGrad = false) =>
        randomTensor(shape, { seed, requiresGrad });
      const batch = randomBatch(rows, vocabulary);
      const teacherHidden = make([rows, channels], 2);
      const hidden = [make([rows, channels], 1, true), make([rows, channels], 1, true)] as const;
      const weight = [
        make([vocabulary, channels], 3, trained),
        make([vocabulary, channels], 3, trained),
      ] as const;
      const options = {
        temperature: 3,
        entropyTopK: 7,
        svdTopK: 5,
      } as const;
      const own = { ...options, positions: 'non_padding' } as const;
      const fused = new BaLoraLoss({ weight: weight[0], softcap }, own).compute({
        hidden: hidden[0],
        teacher: teacherHidden,
        batch,
        weights,
      });
      (fused.loss as Tensor).backward();
      const logits = headLogits(hidden[1], weight[1], { softcap });
      const teacherLogits = noGrad(() => headLogits(teacherHidden, weight[1], { softcap }));
      const plain = baLoraPlainLoss(
        { logits, teacherLogits, targets: tensor(batch.targets) },
        { ...options, weights },
      );
      plain.loss.backward();
      expect((fused.loss as Tensor).itemSync()).toBeCloseTo(plain.loss.itemSync(), 10);
      const gradients = (t: Tensor) => valuesOf(t.grad as Tensor);
      expect(relativeError(gradients(hidden[0]), gradients(hidden[1]))).toBeLessThan(1e-9);
      if (trained)
        expect(relativeError(gradients(weight[0]), gradients(weight[1]))).toBeLessThan(1e-9);
    },
  );

  // Bounds of |fused in a narrow dtype - exact in f64|: the rounding of operands and results.
  it.each([
    ['f32', 1e-5],
    ['bf16', 3e-2],
    ['f16', 4e-3],
  ] as const)('%s stays within its rounding of f64', (dtype, tolerance) => {
    const [rows, channels, vocabulary] = [40, 48, 300];
    const batch = randomBatch(rows, vocabulary);
    // Values that the narrow dtype represents exactly, so that both computations have the same operands.
    const narrow = (shape: number[], seed: number) => randomTensor(shape, { seed }).to(dtype);
    const run = (wide: boolean) => {
      const cast = (t: Tensor) => noGrad(() => (wide ? t.to('f64') : t)).detach();
      const hidden = cast(narrow([rows, channels], 1));
      hidden.requiresGrad = true;
      const result = new BaLoraLoss({ weight: cast(narrow([vocabulary, channels], 3)) }).compute({
        hidden,
        teacher: cast(narrow([rows, channels], 2)),
        batch,
        weights,
      });
      (result.loss as Tensor).backward();
      return {
        value: (result.loss as Tensor).itemSync(),
        gradient: valuesOf(hidden.grad as Tensor),
      };
    };
    const [truth, found] = [run(true), run(false)];
    expect(Math.abs(found.value - truth.value)).toBeLessThan(1e-5 * Math.abs(truth.value));
    expect(relativeError(found.gradient, truth.gradient)).toBeLessThan(tolerance);
  });
});

describe('gradients in f64', () => {
  const head = randomTensor([29, 6], { seed: 3 });
  const targets = tensor(Int32Array.of(4, -100, 28, 0, 7));
  const regularized = tensor(Uint8Array.of(1, 1, 0, 1, 0));
  const scales = { taskScale: 0.3, consistencyScale: 0.2, diversityScale: 0.5 };

  it.each([0, 3])('headLosses, softcap %d', (softcap) => {
    const f = (hidden: Tensor, weight: Tensor) =>
      headLosses({
        hidden,
        teacher: randomTensor([5, 6], { seed: 2 }),
        // The teacher has a head of its own, since it would otherwise change with the perturbed weight.
        teacherHead: head,
        head: weight,
        targets,
        regularized,
        softcap,
        temperature: 2,
        entropyTopK: 4,
        ...scales,
      }).loss;
    gradcheck(f, [randomTensor([5, 6], { seed: 1 }), head]);
  });

  it.each(onCpu([0, 3]))(
    'headLosses with a factor for each row and a scale of the logits, softcap %d',
    (softcap) => {
      const factors = tensor(Float64Array.of(0.5, -1, 2, 0, 1.5));
      const teacher = randomTensor([5, 6], { seed: 2 });
      const fixed = { targets, regularized, factors, softcap, logitScale: 0.7, temperature: 2 };
      const f = (hidden: Tensor, weight: Tensor) =>
        headLosses({
          ...{ hidden, teacher, teacherHead: head, head: weight, entropyTopK: 4 },
          ...{ ...fixed, ...scales },
        }).loss;
      gradcheck(f, [randomTensor([5, 6], { seed: 1 }), head]);
      if (softcap > 0) return;
      const kept = noGrad(() => teacherSummary(teacher, { head, logitScale: 0.7, temperature: 2 }));
      const ofKept = (hidden: Tensor) =>
        headLosses({ hidden, head, teacher: kept, entropyTopK: 4, ...fixed, ...scales }).loss;
      const hidden = randomTensor([5, 6], { seed: 1 });
      gradcheck(ofKept, [hidden]);
      expect(ofKept(hidden).itemSync()).toBeCloseTo(f(hidden, head).itemSync(), 12);
    },
  );

  // The loss is a multiple of the log-probabilities, or not; its head frozen or trained: backward has a way for each.
  const kinds = [
    { name: 'of the task alone', given: { taskScale: 0.3 } },
    { name: 'of all terms', given: scales },
    { name: 'of no term', given: {} },
  ];
  it.each(onCpu(kinds))('log-probabilities beside a loss $name', (kind) => {
    const teacher = randomTensor([5, 6], { seed: 2 });
    const f = (hidden: Tensor, weight: Tensor) => {
      const given = { hidden, head: weight, teacher, teacherHead: head, targets, entropyTopK: 4 };
      const made = headLosses({ ...given, ...kind.given, logProbabilities: true });
      const logs = made.logProbabilities as Tensor;
      return add(made.loss, sum(mul(logs, add(logs, 1)))); // their gradients differ by row
    };
    const hidden = randomTensor([5, 6], { seed: 1 });
    gradcheck(f, [hidden, head]);
    gradcheck((h) => f(h, head), [hidden]);
  });

  it('svdLoss in both forms', () => {
    const hidden = randomTensor([5, 6], { seed: 1 });
    const gram = new HeadGram(head);
    gradcheck((h) => svdRatioGram(h, gram.get(), { k: 2 }), [hidden]);
    gradcheck((h) => svdRatioGram(h, gram.get(), { k: 2, norm: 'nuclear' }), [hidden]);
    gradcheck((h, w) => svdRatio(h, w, { k: 2, softcap: 3 }), [hidden, head]);
  });

  it('an upstream gradient scales both gradients', () => {
    const leaf = () => randomTensor([5, 6], { seed: 1, requiresGrad: true });
    const [one, three] = [leaf(), leaf()];
    headLosses({ hidden: one, head, targets, ...scales }).loss.backward();
    headLosses({ hidden: three, head, targets, ...scales }).loss.backward(
      tensor(Float64Array.of(3), { shape: [] }),
    );
    const [a, b] = [valuesOf(one.grad as Tensor), valuesOf(three.grad as Tensor)];
    expect(
      relativeError(
        b,
        a.map((v) => 3 * v),
      ),
    ).toBeLessThan(1e-14);
  });
});

describe('log-probabilities of the targets', () => {
  const sizes = [
    { rows: 37, channels: 40, vocabulary: 1100 },
    { rows: 5, channels: 7, vocabulary: 31 },
  ];
  const dtypes = [
    ['f64', 1e-12],
    ['f32', 1e-5],
    ['bf16', 2e-2],
    ['f16', 4e-3],
  ] as const;
  const cases = sizes.flatMap((size) =>
    dtypes.flatMap(([dtype, tolerance]) =>
      [false, true].map((trained) => ({ ...size, dtype, tolerance, trained })),
    ),
  );
  it.each(onCpu(cases))(
    '$dtype, M $rows, V $vocabulary, trained $trained: those of the logits, and their gradients',
    ({ rows, channels, vocabulary, dtype, tolerance, trained }) => {
      const targets = tensor(randomBatch(rows, vocabulary).targets);
      const factors = randomTensor([rows], { seed: 5 });
      const make = (shape: number[], seed: number, wide: boolean, requiresGrad: boolean) => {
        const narrow = randomTensor(shape, { seed }).to(dtype);
        const made = noGrad(() => (wide ? narrow.to('f64') : narrow)).detach();
        made.requiresGrad = requiresGrad;
        return made;
      };
      const run = (plain: boolean) => {
        const hidden = make([rows, channels], 1, plain, true);
        const head = make([vocabulary, channels], 3, plain, trained);
        const values = plain
          ? neg(crossEntropy(headLogits(hidden, head), targets, { reduction: 'none' }))
          : (headLosses({ hidden, head, targets, taskScale: 1, logProbabilities: true })
              .logProbabilities as Tensor);
        sum(mul(values, factors)).backward();
        return {
          values: valuesOf(values),
          hidden: valuesOf(noGrad(() => (hidden.grad as Tensor).to('f64'))),
          head: trained ? valuesOf(noGrad(() => (head.grad as Tensor).to('f64'))) : [],
        };
      };
      const [truth, found] = [run(true), run(false)];
      expect(relativeError(found.values, truth.values)).toBeLessThan(Math.min(tolerance, 1e-5));
      expect(relativeError(found.hidden, truth.hidden)).toBeLessThan(tolerance);
      if (trained) expect(relativeError(found.head, truth.head)).toBeLessThan(tolerance);
    },
  );

  it("are those of a teacher's summary, which has them beside targets", () => {
    const [hidden, head] = [randomTensor([5, 6]), randomTensor([29, 6], { seed: 3 })];
    const targets = tensor(Int32Array.of(4, -100, 28, 0, 7));
    expect(teacherSummary(hidden, { head }).logProbability).toBeUndefined();
    if (kTestDevice !== 'cpu') return;
    const { logProbability } = teacherSummary(hidden, { head, targets, temperature: 2 });
    const { logProbabilities } = headLosses({ hidden, head, targets, logProbabilities: true });
    const [kept, live] = [logProbability as Tensor, logProbabilities as Tensor].map(valuesOf);
    expect(relativeError(kept as Float64Array, live as Float64Array)).toBeLessThan(1e-14);
    expect((kept as Float64Array)[1]).toBe(0);
    const bad = tensor(Int32Array.of(1, 7, 30, 0, 0));
    expect(() => teacherSummary(hidden, { head, targets: bad }).mean.dataSync()).toThrow(
      /target 30 of row 2/,
    );
  });
});

describe('the SVD term', () => {
  it('is computed by Gram matrices where the head is frozen and linear', () => {
    const frozen = randomTensor([5, 3]);
    const trained = randomTensor([5, 3], { requiresGrad: true });
    expect(gramFormAllowed({ weight: frozen })).toBe(true);
    expect(gramFormAllowed({ weight: frozen, softcap: 30 })).toBe(false);
    expect(gramFormAllowed({ weight: trained })).toBe(false);
  });
});

describe('evaluation', () => {
  it('gives cross-entropy, KL and entropy by rows as defined', () => {
    const [rows, vocabulary] = [4, 9];
    const hidden = randomTensor([rows, 5], { seed: 1 });
    const teacher = randomTensor([rows, 5], { seed: 2 });
    const weight = randomTensor([vocabulary, 5], { seed: 3 });
    const targets = Int32Array.of(2, -100, 8, 0);
    const found = valuesOf(headRows({ hidden, teacher, targets: tensor(targets), head: weight }));
    const distribution = (h: Tensor) => {
      const z = valuesOf(headLogits(h, weight));
      return Array.from({ length: rows }, (_, n) => {
        const row = z.slice(n * vocabulary, (n + 1) * vocabulary).map(Math.exp);
        const total = row.reduce((a, b) => a + b);
        return row.map((v) => v / total);
      });
    };
    const [p, q] = [distribution(hidden), distribution(teacher)];
    for (let n = 0; n < rows; n++) {
      const [pn, qn] = [p[n] as Float64Array, q[n] as Float64Array];
      const target = targets[n] as number;
      const expected = [
        target < 0 ? 0 : -Math.log(pn[target] as number),
        qn.reduce((s, v, j) => s + v * Math.log(v / (pn[j] as number)), 0),
        pn.reduce((s, v) => s - v * Math.log(v), 0),
      ];
      expect(relativeError(found.slice(3 * n, 3 * n + 3), expected)).toBeLessThan(1e-12);
    }
  });

  it('gives the effective rank of all logits by the accumulated Gram matrix', async () => {
    const weight = randomTensor([40, 6], { seed: 3 });
    const hidden = randomTensor([23, 6], { seed: 1 });
    const rank = new EffectiveRank();
    rank.add(indexSelect(hidden, tensor(Int32Array.from({ length: 10 }, (_, n) => n))));
    rank.add(indexSelect(hidden, tensor(Int32Array.from({ length: 13 }, (_, n) => n + 10))));
    const expected = effectiveRankOf(valuesOf(singularValues(headLogits(hidden, weight))));
    expect(await rank.value(new HeadGram(weight))).toBeCloseTo(expected, 6);
    expect(effectiveRankOf([2, 2, 2])).toBeCloseTo(3, 12);
    expect(effectiveRankOf([0, 0])).toBe(0);
    rank.dispose();
  });
});

describe('no (M,V) tensor is allocated', () => {
  it.each([
    ['a frozen linear head, by its Gram matrix', 0, false],
    ['a soft-capped head, in tiles', 30, false],
    ['a trained head, in tiles', 0, true],
    ['a trained soft-capped head, in tiles', 30, true],
  ])('of %s: the peak stays far below one matrix of logits', (_, softcap, trained) => {
    // Singular values by tiles need many passes over the logits, and on a device a few columns of V numbers.
    const tiles = softcap > 0 || trained;
    const small = kTestDevice !== 'cpu' || tiles;
    const share = kTestDevice !== 'cpu' && tiles ? 1 / 2 : 1 / 8;
    const [rows, channels, vocabulary, chunkBytes] = small
      ? [512, 16, 4096, 1 << 17]
      : [2048, 16, 8192, 1 << 20];
    scope(() => {
      const hidden = randomTensor([rows, channels], { dtype: 'f32', requiresGrad: true });
      const weight = randomTensor([vocabulary, channels], {
        ...{ dtype: 'f32', seed: 2, requiresGrad: trained },
      });
      expect(gramFormAllowed({ weight, softcap })).toBe(!tiles);
      synchronizeSync();
      const before = memoryStats().liveBytes;
      resetPeakMemory();
      const loss = new BaLoraLoss(
        { weight, softcap },
        { positions: 'non_padding', chunkBytes, svdTopK: 3 },
      );
      const batch = randomBatch(rows, vocabulary);
      const result = loss.compute({ hidden, teacher: hidden.detach(), batch, weights });
      (result.loss as Tensor).backward();
      synchronizeSync();
      const logitsBytes = rows * vocabulary * 4;
      expect(memoryStats().peakBytes - before).toBeLessThan(logitsBytes * share);
      loss.dispose();
    });
  });
});

describe("a teacher's summary", () => {
  it.each(['f64', 'f32', 'bf16'] as const)(
    'in %s gives the terms of its hidden states',
    (dtype) => {
      const make = (shape: number[], seed: number) => randomTensor(shape, { seed, dtype });
      const [hidden, states, head] = [make([9, 12], 1), make([9, 12], 2), make([40, 12], 3)];
      const targets = tensor(Int32Array.from({ length: 9 }, (_, i) => (i % 4 === 3 ? -100 : i)));
      const common = { hidden, head, targets, temperature: 2, entropyTopK: 5 };
      const scales = { taskScale: 0.3, consistencyScale: 0.2, diversityScale: 0.1 };
      const summary = teacherSummary(states, { head, temperature: 2 });
      const tolerance = dtype === 'f64' ? 1e-12 : 2e-5;
      const [kept, live] = [summary, states].map((teacher) => ({
        rows: valuesOf(headRows({ ...common, teacher })),
        sums: valuesOf(headLosses({ ...common, ...scales, teacher }).sums),
      })) as [Record<'rows' | 'sums', Float64Array>, Record<'rows' | 'sums', Float64Array>];
      expect(relativeError(kept.rows, live.rows)).toBeLessThan(tolerance);
      expect(relativeError(kept.sums, live.sums)).toBeLessThan(tolerance);
      // The rows are those whose sums the losses give.
      const column = (i: number) => kept.rows.filter((_, at) => at % 3 === i);
      for (let i = 0; i < 3; i++) {
        const total = column(i).reduce((sum, x) => sum + x, 0);
        expect(Math.abs(total - (kept.sums[i] as number))).toBeLessThan(1e-12 * (1 + total));
      }
      expect(column(1).every((x) => x > 0)).toBe(true);
    },
  );
});

describe('bad arguments', () => {
  const hidden = randomTensor([3, 4]);
  const head = randomTensor([7, 4]);
  const targets = tensor(Int32Array.of(1, 2, 3));
  const nothing = tensor(new Float64Array(0), { shape: [0, 4] });
  it.each([
    [
      'head of other channels',
      () => headLosses({ hidden, head: randomTensor([7, 5]) }),
      /head.*\(7,4\)|\(V,C\)/,
    ],
    [
      'targets of another length',
      () => headLosses({ hidden, head, targets: tensor(Int32Array.of(1)) }),
      /targets/,
    ],
    [
      'targets of another dtype',
      () => headLosses({ hidden, head, targets: tensor([1, 2, 3]) }),
      /targets.*i32/,
    ],
    ['temperature 0', () => headLosses({ hidden, head, temperature: 0 }), /temperature/],
    [
      'no rows',
      () => headLosses({ hidden: tensor(new Float64Array(0), { shape: [0, 4] }), head }),
      /no rows/,
    ],
    ['no vocabulary', () => headLosses({ hidden, head: nothing }), /head has no rows/],
    ['no vocabulary, by tiles', () => svdRatio(hidden, nothing), /head has no rows/],
    ['k = 0', () => svdRatioGram(hidden, new HeadGram(head).get(), { k: 0 }), /k must be/],
    ['another norm', () => svdRatio(hidden, head, { norm: 'spectral' as 'nuclear' }), /norm/],
    [
      'a teacher head without a teacher',
      () => headLosses({ hidden, head, teacherHead: head }),
      /teacherHead without teacher/,
    ],
    [
      "a teacher head beside the teacher's summary",
      () =>
        headLosses({ hidden, head, teacher: teacherSummary(hidden, { head }), teacherHead: head }),
      /teacherHead is for a teacher's hidden states; leave it out beside a summary/,
    ],
    [
      'a summary of other rows',
      () => headLosses({ hidden, head, teacher: teacherSummary(randomTensor([2, 4]), { head }) }),
      /mean.*\(M,C\)/,
    ],
    [
      'a summary for a soft-capped head',
      () => headRows({ hidden, head, teacher: teacherSummary(hidden, { head }), softcap: 3 }),
      /soft-capped/,
    ],
  ])('%s', (_, call, message) => {
    expect(call).toThrow(message);
  });

  it('include a summary beside a head that is trained', () => {
    const trained = randomTensor([7, 4], { requiresGrad: true });
    const teacher = teacherSummary(hidden, { head });
    expect(() => headLosses({ hidden, head: trained, teacher })).toThrow(UnsupportedError);
    expect(() => headLosses({ hidden, head: trained, teacher })).toThrow(/head is trained/);
  });

  it('include factors that want a gradient, which they would not get', () => {
    const factors = tensor(Float64Array.of(1, 2, 3), { requiresGrad: true });
    expect(() => headLosses({ hidden, head, targets, factors })).toThrow(/factors get no gradient/);
  });

  it('include on other devices what only the CPU computes', () => {
    // Each with operands of its own: what a call that failed was given has no value on a device.
    const labelled = () => ({ head, targets: tensor(Int32Array.of(0, 1, 2)) });
    const given = () => ({ hidden, ...labelled() });
    const calls = {
      factors: () => headLosses({ ...given(), factors: tensor(Float64Array.of(1, 2, 3)) }),
      'a scale of the logits': () => headLosses({ ...given(), logitScale: 0.5 }),
      'log-probabilities': () => headLosses({ ...given(), logProbabilities: true }),
      'log-probabilities of targets': () => teacherSummary(hidden, labelled()),
    };
    for (const [what, call] of Object.entries(calls)) {
      const run = () => {
        call();
        synchronizeSync();
      };
      if (kTestDevice === 'cpu') expect(run).not.toThrow();
      else expect(run).toThrow(new RegExp(`${what}.* on the CPU alone`));
    }
  });

  it('include both forms of a teacher, or half of one, in a call of the addon', () => {
    const call = (given: Record<string, number>, of = hidden.handle): void => {
      const none = { hidden: null, head: null, mean: null, entropy: null, logProbability: null };
      const masks = { targets: null, regularized: null, scales: null, factors: null };
      const scales = { taskScale: 1, consistencyScale: 1, diversityScale: 1 };
      native.headLosses(
        { hidden: of, head: head.handle, teacher: { ...none, ...given }, ...masks },
        {
          ...scales,
          temperature: 1,
          entropyTemperature: 1,
          softcap: 0,
          logitScale: 1,
          entropyTopK: 0,
          chunkBytes: 0,
        },
        false,
      );
    };
    const { mean, entropy } = teacherSummary(hidden, { head });
    const kept = { mean: mean.handle, entropy: entropy.handle };
    expect(() => call({ ...kept, hidden: hidden.handle })).toThrow(/give one of them/);
    expect(() => call({ mean: mean.handle })).toThrow(/is its mean and entropy/);
    expect(() => call(kept, 'x' as never)).toThrow(/^hidden: expected a tensor, got x/);
    expect(() => call(kept)).not.toThrow();
  });

  it.each([
    ['log-probabilities without targets', { logProbabilities: true }, /without targets/],
    ['a scale of the logits that is 0', { logitScale: 0 }, /logitScale must be > 0/],
    ['factors of another length', { factors: tensor(Float64Array.of(1, 2)) }, /factors/],
  ])('include %s', (_, given, message) => {
    expect(() => headLosses({ hidden, head, ...given })).toThrow(message);
  });

  it('of a target outside the vocabulary are reported at the next read', () => {
    const bad = tensor(Int32Array.of(1, 7, 3));
    const { sums } = headLosses({ hidden, head, targets: bad });
    expect(() => sums.dataSync()).toThrow(/target 7 of row 1/);
  });

  it('include a consistency weight without a teacher', () => {
    const loss = new BaLoraLoss({ weight: head });
    const batch = { targets: targets.dataSync() as Int32Array, cuSeqlens: Int32Array.of(0, 3) };
    expect(() => loss.compute({ hidden, batch, weights })).toThrow(/reads the teacher/);
    expect(() => new BaLoraLoss({ weight: head }, { entropyTopK: -3 })).toThrow(/entropyTopK/);
  });
});

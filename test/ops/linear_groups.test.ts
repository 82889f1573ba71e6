// Linears whose rows meet operands of their own group (rowOffsets): against plain loops, and bit for bit against a linear a group.
import { describe, expect, it } from 'vitest';
import { fourBitWeight, quantizeNf4 } from '../../lib/io/blocks.ts';
import { concat, linear, linearGroup, mul, reshape, slice } from '../../lib/ops/index.ts';
import { batchInvariant, synchronize, withInt8Products } from '../../lib/runtime.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { kTestDevice } from '../support/device.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';
import { type Form, kSameValues } from '../support/views.ts';

const ints = (...list: number[]) => tensor(Int32Array.from(list));
// The CPU alone takes groups: what other devices say is the last test.
const describeCpu = kTestDevice === 'cpu' ? describe : () => {};

/** The ends of groups: odd numbers of rows, more than a panel, a single one, and none at the begin, between others and at the end. */
const kEnds = [
  [0, 5],
  [0, 0, 3, 3, 38, 39, 104, 104],
  [0, 1, 1, 2, 4],
  [0, 0, 0],
];
const kSizes = [
  { ins: 31, outs: 17, rank: 3 },
  { ins: 96, outs: 65, rank: 16 },
];

type FloatType = (typeof kFloatTypes)[number];
const masterOf = (dtype: FloatType) => (dtype === 'f64' ? 'f64' : 'f32');

/** The operands of each group, all of which want a gradient. */
function operandsOf(dtype: FloatType, groups: number, { ins, outs, rank }: (typeof kSizes)[0]) {
  const wide = masterOf(dtype);
  const one = (shape: number[], seed: number, type: FloatType) =>
    randomTensor(shape, { seed, dtype: type, requiresGrad: true });
  return Array.from({ length: groups }, (_, g) => ({
    weight: one([outs, ins], 10 * g + 1, dtype),
    bias: one([outs], 10 * g + 2, dtype),
    weightChange: one([outs, ins], 10 * g + 3, dtype),
    a: one([rank, ins], 10 * g + 4, wide),
    b: one([outs, rank], 10 * g + 5, wide),
  }));
}
type Operands = ReturnType<typeof operandsOf>[number];
const kOperands = ['weight', 'bias', 'weightChange', 'a', 'b'] as const;

/** Operands of all groups as leaves with a dimension more in front. */
const stacked = (list: readonly Operands[]): Operands =>
  Object.fromEntries(
    kOperands.map((key) => {
      const all = concat(
        list.map((of) => of[key].detach()),
        0,
      );
      const leaf = reshape(all, [list.length, ...(list[0] as Operands)[key].shape]);
      leaf.requiresGrad = true;
      return [key, leaf];
    }),
  ) as unknown as Operands;
const layerOf = ({ a, b, ...rest }: Operands) => ({
  ...{ ...rest, lowRank: [{ a, b, scale: 0.5, form: 'change' as const }] },
});

describeCpu('linear by groups of rows', () => {
  for (const dtype of kFloatTypes) {
    it(`has the results and gradients of a linear a group in ${dtype}, bit for bit`, () => {
      for (const ends of kEnds) {
        for (const size of kSizes) {
          for (const apart of [false, true]) {
            const [groups, rows] = [ends.length - 1, ends.at(-1) as number];
            const input = (seed: number) =>
              randomTensor([rows, size.ins], { seed, dtype, requiresGrad: true });
            const dy = randomTensor([rows, size.outs], { seed: 3, dtype });
            const [x, xa] = [input(1), input(2)];
            const each = operandsOf(dtype, groups, size);
            const all = stacked(each);
            const rowOffsets = ints(...ends);
            const { weight, ...rest } = layerOf(all);
            const y = linear(x, weight, { ...rest, adapterInput: apart ? xa : null, rowOffsets });
            y.backward(dy);
            each.forEach((operands, g) => {
              const range = { start: ends[g] as number, stop: ends[g + 1] as number };
              const hasRows = range.start < range.stop;
              if (hasRows) {
                const [xg, xag] = [x, xa].map((t) => mul(slice(t.detach(), 0, range), 1));
                const leaves = [xg as Tensor, xag as Tensor].slice(0, apart ? 2 : 1);
                for (const leaf of leaves) leaf.requiresGrad = true;
                const { weight: own, ...others } = layerOf(operands);
                const adapterInput = leaves[1] ?? null;
                const yg = linear(leaves[0] as Tensor, own, { ...others, adapterInput });
                expectClose(slice(y, 0, range), values(yg), 0);
                yg.backward(slice(dy, 0, range));
                leaves.forEach((leaf, i) => {
                  const grad = slice((i === 0 ? x : xa).grad as Tensor, 0, range);
                  expectClose(grad, values(leaf.grad as Tensor), 0);
                });
              }
              for (const key of kOperands) {
                const { size: count, grad } = operands[key];
                const got = slice(all[key].grad as Tensor, 0, { start: g, stop: g + 1 });
                expectClose(got, hasRows ? values(grad as Tensor) : new Float64Array(count), 0);
              }
            });
          }
        }
      }
    });

    it(`equals plain loops in ${dtype}, with frozen weights, whatever else is in the batch`, () => {
      const [ends, size] = [kEnds[1] as number[], kSizes[0] as (typeof kSizes)[0]];
      const { ins, outs, rank } = size;
      const x = randomTensor([ends.at(-1) as number, ins], { seed: 1, dtype });
      const { weight, bias, lowRank } = layerOf(stacked(operandsOf(dtype, ends.length - 1, size)));
      const [{ a, b, scale, form }] = lowRank as [(typeof lowRank)[number]];
      const part = { a: a.detach(), b: b.detach(), scale, form };
      const layer = { weight: weight.detach().freeze(), bias: bias.detach(), lowRank: [part] };
      const [vx, vw, vb, va, vr] = [x, weight, bias, a, b].map(values) as [
        ...[Float64Array, Float64Array, Float64Array, Float64Array, Float64Array],
      ];
      const want = new Float64Array((x.shape[0] as number) * outs);
      for (let n = 0, g = 0; n < (x.shape[0] as number); ++n) {
        while (n >= (ends[g + 1] as number)) ++g;
        const dot = (of: Float64Array, row: number) => {
          let sum = 0;
          for (let i = 0; i < ins; ++i)
            sum += (vx[n * ins + i] as number) * (of[row * ins + i] as number);
          return sum;
        };
        for (let o = 0; o < outs; ++o) {
          let sum = dot(vw, g * outs + o) + (vb[g * outs + o] as number);
          for (let r = 0; r < rank; ++r)
            sum += scale * dot(va, g * rank + r) * (vr[(g * outs + o) * rank + r] as number);
          want[n * outs + o] = sum;
        }
      }
      const call = (rows: Tensor, rowOffsets: Tensor) =>
        batchInvariant(() => linearGroup(rows, [layer], { rowOffsets })[0] as Tensor);
      const together = call(x, ints(...ends));
      // The form `change` loses 2^-9 of the change, whose sums are below 16.
      expectClose(together, want, 2 * roundingOf(dtype) + (dtype === 'bf16' ? 0.03 : 4e-5));
      const last = ends.at(-1) as number;
      const alone = call(
        slice(x, 0, { start: last - 1, stop: last }),
        ints(0, 0, 0, 0, 0, 0, 1, 1),
      );
      expectClose(alone, values(together).subarray((last - 1) * outs), 0);
    });
  }

  it('decodes a weight in blocks from where its group begins', () => {
    const [ends, outs, ins] = [[0, 3, 3, 40, 47], 33, 31]; // blocks of 64 that two groups share
    for (const dtype of ['bf16', 'f32', 'f16'] as const) {
      const dense = randomTensor([4, outs, ins], { seed: 5, dtype: 'f32' });
      const { packed, absmax } = quantizeNf4(dense);
      const blocks = { type: 'NF4', blockSize: 64, packed, absmax } as const;
      const options = { name: 'w', shape: [4, outs, ins], dtype, checkFinite: false };
      const weight = fourBitWeight(blocks, options);
      const part = {
        a: randomTensor([4, 8, ins], { seed: 6, dtype: 'f32' }),
        b: randomTensor([4, outs, 8], { seed: 7, dtype: 'f32' }),
      };
      const run = (w: Tensor) => {
        const x = randomTensor([47, ins], { seed: 8, dtype, requiresGrad: true });
        const y = batchInvariant(() =>
          linear(x, w, { lowRank: [part], rowOffsets: ints(...ends) }),
        );
        y.backward(randomTensor([47, outs], { seed: 9, dtype }));
        return [values(y), x.grad as Tensor] as const;
      };
      const [y, dx] = run(weight);
      const [want, dxWant] = run(weight.to(dtype).freeze());
      expect(y).toEqual(want);
      expectClose(dx, values(dxWant), 0);
    }
  });

  it('has the gradient of its definition, with starts, a change and inputs of adapters', () => {
    const shapes = [
      [5, 3],
      [5, 3],
      [3, 4, 3],
      [3, 4],
      [3, 4, 3],
      [3, 2, 3],
      [3, 4, 2],
    ];
    const start = {
      a: randomTensor([3, 2, 3], { seed: 31 }),
      b: randomTensor([3, 4, 2], { seed: 32 }),
    };
    for (const isApart of [false, true]) {
      gradcheck(
        (...t) => {
          const [x, xa, w, bias, change, a, b] = t as [
            ...[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
          ];
          const options = { rowOffsets: ints(0, 2, 2, 5), adapterInput: isApart ? xa : null };
          const parts = [{ a, b, scale: 3, start }];
          const outputs = linearGroup(
            x,
            [{ weight: w, bias, weightChange: change, lowRank: parts }, { weight: w }],
            options,
          );
          return [...outputs, xa];
        },
        shapes.map((shape, i) => randomTensor(shape, { seed: i + 1 })),
      );
    }
  });

  it('is for views what it is for copies of them', () => {
    const shapes = [
      [6, 5],
      [3, 7, 5],
      [3, 7],
      [3, 2, 5],
      [3, 7, 2],
    ];
    const run = (form: Form) => {
      const leaves = shapes.map((shape, i) =>
        randomTensor(shape, { seed: i + 1, requiresGrad: true }),
      );
      const [x, weight, bias, a, b] = leaves.map(form) as [Tensor, Tensor, Tensor, Tensor, Tensor];
      const rowOffsets = form(ints(0, 2, 2, 6));
      const y = linear(x, weight, { bias, lowRank: [{ a, b, scale: 3 }], rowOffsets });
      y.backward(form(randomTensor([6, 7], { seed: 9 })));
      return [y, ...leaves.map(({ grad }) => grad as Tensor)].map(values);
    };
    const want = run((x) => x);
    for (const [name, form] of Object.entries(kSameValues)) expect(run(form), name).toEqual(want);
  });

  it('refuses bad arguments by name', async () => {
    const f32 = (...shape: number[]) => randomTensor(shape, { dtype: 'f32' });
    const [x, w, rowOffsets] = [f32(4, 6), f32(2, 3, 6), ints(0, 1, 4)];
    const refuses = (options: object, message: string, weight = w) =>
      expect(() => linear(x, weight, { rowOffsets, ...options })).toThrow(`linear: ${message}`);
    refuses({}, 'weight[0] must have 3 dimensions', f32(3, 6));
    refuses({}, 'weight[0] must be (G,O,I)=(2,3,6), got (2,3,5)', f32(2, 3, 5));
    refuses({ rowOffsets: null }, 'weight[0] must have 2 dimensions');
    refuses({ bias: f32(3) }, 'bias[0] must be (G,O)=(2,3), got (3)');
    refuses({ lowRank: [{ a: f32(2, 6), b: f32(3, 2) }] }, 'a[0] must have 3 dimensions');
    const wrong = { a: f32(2, 4, 6), b: f32(3, 3, 4) };
    refuses({ lowRank: [wrong] }, 'b[0] must be (G,O,R)=(2,3,4), got (3,3,4)');
    refuses({ rowOffsets: ints(0, 4) }, 'rowOffsets must be (G+1)=(3), got (2)');
    refuses({ rowOffsets: f32(3) }, 'rowOffsets must be i32, got f32');
    refuses({ rowOffsets: reshape(rowOffsets, [1, 3]) }, 'rowOffsets must have 1 dimension');
    refuses({ outputScale: f32(2, 3) }, 'outputScale[0] beside rowOffsets');
    withInt8Products({ forward: true }, () => refuses({}, 'rowOffsets are not taken'));
    for (const [ends, message] of [
      [[0, 1, 5], 'rowOffsets must rise from 0 to the 4 rows, got 0 to 5'],
      [[1, 1, 4], 'rowOffsets must rise from 0 to the 4 rows, got 1 to 4'],
      [[0, 5, 4], 'rowOffsets falls from 5 to 4 at index 2'],
      [[0, -1, 4], 'rowOffsets falls from 0 to -1 at index 1'],
    ] as const) {
      const y = linear(x, w, { rowOffsets: ints(...ends) });
      await expect(synchronize()).rejects.toThrow(message);
      y.dispose();
    }
  });
});

it('takes groups of rows on the CPU, and refuses them by name on other devices', () => {
  const [x, w] = [randomTensor([4, 6]), randomTensor([2, 3, 6])];
  const call = () => linear(x, w, { rowOffsets: ints(0, 1, 4) });
  if (kTestDevice === 'cpu') expect(call().shape).toEqual([4, 3]);
  else expect(call).toThrow('linear: rowOffsets are taken on the CPU alone');
});

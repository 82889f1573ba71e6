// Modules (parameters and children are found by reflection), linears with adapters, groups.
import { describe, expect, it } from 'vitest';
import type { LinearAdapter, LinearUpdate } from '../../lib/nn/adapter_hook.ts';
import { Linear, LinearGroup } from '../../lib/nn/linear.ts';
import { Module } from '../../lib/nn/module.ts';
import { RMSNorm } from '../../lib/nn/norm.ts';
import { matmul } from '../../lib/ops/index.ts';
import { values } from '../support/compare.ts';
import { randomTensor } from '../support/gradcheck.ts';

class Block extends Module {
  q_proj = new Linear(randomTensor([4, 3], { seed: 1 }));
  k_proj = new Linear(randomTensor([2, 3], { seed: 2 }), randomTensor([2], { seed: 3 }));
  norm = new RMSNorm(randomTensor([3], { seed: 4 }));
  readonly group = new LinearGroup([this.q_proj, this.k_proj]);
}
class Net extends Module {
  embed = randomTensor([5, 3]);
  layers = [new Block(), new Block()];
  lm_head = new Linear(this.embed); // tied
}

describe('Module', () => {
  it('names parameters as in the checkpoint, and a tied one once', () => {
    const names = Array.from(new Net().namedParameters(), ([name]) => name);
    expect(names).toEqual([
      'embed',
      ...[0, 1].flatMap((i) =>
        ['q_proj.weight', 'k_proj.weight', 'k_proj.bias', 'norm.weight'].map(
          (n) => `layers.${i}.${n}`,
        ),
      ),
    ]);
  });

  it('finds modules by path, and lists the existing names where there is none', () => {
    const net = new Net();
    expect(net.module('layers.1.k_proj')).toBe(net.layers[1]?.k_proj);
    expect(() => net.module('layers.2')).toThrow(
      /no module "layers.2".*layers\.0, layers\.1, lm_head/,
    );
    expect(() => net.module('layers.0.v_proj')).toThrow(/q_proj, k_proj, norm/);
  });

  it('replaces a tied parameter in both places', () => {
    const net = new Net();
    const other = randomTensor([5, 3], { seed: 9 });
    net.replaceParameter(net.embed, other);
    expect(net.lm_head.weight).toBe(other);
    expect(net.embed).toBe(other);
  });
});

describe('Linear', () => {
  const x = randomTensor([6, 3], { seed: 5 });
  const adapterOf = (update: LinearUpdate | null): LinearAdapter => ({ update: () => update });

  it('gives x W^T + bias, alone and in a group', () => {
    const { q_proj, k_proj, group } = new Block();
    const [q, k] = group.forward(x);
    expect(values(q as never)).toEqual(values(q_proj.forward(x)));
    const plain = values(matmul(x, k_proj.weight, { transposeB: true }));
    const bias = values(k_proj.bias as never);
    const expected = plain.map((v, i) => v + (bias[i % 2] as number));
    values(k as never).forEach((v, i) => {
      expect(v).toBeCloseTo(expected[i] as number, 12);
    });
  });

  it('adds the pairs of its adapter, and subtracts the start of one', () => {
    const linear = new Linear(randomTensor([4, 3], { seed: 1 }));
    const base = values(linear.forward(x));
    const [a, b] = [randomTensor([2, 3], { seed: 6 }), randomTensor([4, 2], { seed: 7 })];
    linear.adapter = adapterOf({ lowRank: [{ a, b, scale: 0.5 }] });
    const part = values(matmul(matmul(x, a, { transposeB: true }), b, { transposeB: true }));
    values(linear.forward(x)).forEach((v, i) => {
      expect(v).toBeCloseTo((base[i] as number) + 0.5 * (part[i] as number), 12);
    });
    linear.adapter = adapterOf({ lowRank: [{ a, b, scale: 0.5, start: { a, b } }] });
    values(linear.forward(x)).forEach((v, i) => {
      expect(v).toBeCloseTo(base[i] as number, 12);
    });
    const [c, d] = [randomTensor([1, 3], { seed: 8 }), randomTensor([4, 1], { seed: 9 })];
    const other = values(matmul(matmul(x, c, { transposeB: true }), d, { transposeB: true }));
    linear.adapter = adapterOf({
      lowRank: [
        { a, b, scale: 0.5 },
        { a: c, b: d },
      ],
    });
    values(linear.forward(x)).forEach((v, i) => {
      const want = (base[i] as number) + 0.5 * (part[i] as number) + (other[i] as number);
      expect(v).toBeCloseTo(want, 12);
    });
    linear.adapter = adapterOf(null);
    expect(values(linear.forward(x))).toEqual(base);
  });
});

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { philox4x32, shuffledOrder } from '../../lib/data/philox.ts';

describe('philox4x32', () => {
  // Known answers of the authors' Random123 library (kat_vectors, philox4x32 10).
  it.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ] as const)('known answer %#', (counter, key, expected) => {
    expect(philox4x32([...counter], [...key])).toEqual([...expected]);
  });
});

describe('shuffledOrder', () => {
  it('is a permutation and a pure function of seed and epoch', () => {
    fc.assert(
      fc.property(fc.nat(300), fc.maxSafeNat(), fc.nat(5), (n, seed, epoch) => {
        const order = shuffledOrder(n, seed, epoch);
        expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: n }, (_, i) => i));
        expect(shuffledOrder(n, seed, epoch)).toEqual(order);
      }),
    );
  });

  it('differs between seeds and between epochs', () => {
    const orders = [
      [1, 0],
      [1, 1],
      [2, 0],
      [1 + 2 ** 32, 0],
    ].map(([seed, epoch]) => shuffledOrder(50, seed as number, epoch as number).join());
    expect(new Set(orders).size).toBe(4);
  });

  it('is uniform over the orders', () => {
    // 6000 draws of the 6 orders of 3: chi-square with 5 degrees of freedom, 99.99 % below 25.7.
    const counts = new Map<string, number>();
    for (let seed = 0; seed < 6000; seed++) {
      const order = shuffledOrder(3, seed, 0).join();
      counts.set(order, (counts.get(order) ?? 0) + 1);
    }
    expect(counts.size).toBe(6);
    const chi2 = [...counts.values()].reduce((sum, n) => sum + (n - 1000) ** 2 / 1000, 0);
    expect(chi2).toBeLessThan(25.7);
  });

  it('refuses seeds that are not integers', () => {
    expect(() => shuffledOrder(3, -1, 0)).toThrow(/seed must be an integer/);
    expect(() => shuffledOrder(3, 0.5, 0)).toThrow(/seed must be an integer/);
  });
});

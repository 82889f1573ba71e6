// The cache of keys and values: which blocks sequences use as they grow, fork, leave a window and end, on paper; and that a forward
// that fails leaves them as they were.
import { afterEach, describe, expect, it } from 'vitest';
import { type CachedLayer, type CachePass, KvCache } from '../../lib/models/kv_cache.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { scope, type Tensor } from '../../lib/tensor.ts';
import { randomTensor } from '../support/gradcheck.ts';

const kFull: CachedLayer = { window: 0, numKeyValueHeads: 2, headDim: 40 };
const kBlockBytes = 2 * 2 * 32 * 64 * 4; // keys and values, heads, positions, channels (40 rounded up), f32

let cache: KvCache;
const make = (layers: readonly CachedLayer[]): KvCache => {
  cache = new KvCache(layers, { dtype: 'f32', device: 'cpu' });
  return cache;
};
afterEach(() => cache.dispose());

const nothing = (_: CachePass): null => null;
/** Adds rows to sequences without a forward. */
function add(...rows: readonly [sequence: number, count: number][]): void {
  const own = { sequences: rows.map(([s]) => s), counts: rows.map(([, count]) => count) };
  scope(() => cache.extend({ own }, nothing));
}

const usedBlocks = (): number => cache.usedBytes / kBlockBytes;

describe('the blocks of a cache', () => {
  it('are as many as the positions need', () => {
    make([kFull]);
    const [a, b] = [cache.create(), cache.create()];
    expect(cache.bytes).toBe(0);
    add([a, 1]);
    expect(usedBlocks()).toBe(1);
    add([a, 31], [b, 33]);
    expect(usedBlocks()).toBe(1 + 2);
    add([a, 1]);
    expect(usedBlocks()).toBe(2 + 2);
    expect([cache.lengthOf(a), cache.lengthOf(b)]).toEqual([33, 33]);
    cache.release(a);
    expect(usedBlocks()).toBe(2);
  });

  it('are shared by forks until they differ', () => {
    make([kFull]);
    const first = cache.create();
    add([first, 70]); // two full blocks, one of 6 positions
    const [second, third] = [cache.fork(first), cache.fork(first)];
    expect(usedBlocks()).toBe(3);
    add([second, 1]);
    expect(usedBlocks()).toBe(4);
    add([first, 1], [third, 1]); // the last of three has the block for itself
    expect(usedBlocks()).toBe(5);
    cache.release(first);
    cache.release(second);
    expect(usedBlocks()).toBe(3);
    expect(cache.lengthOf(third)).toBe(71);
    cache.release(third);
    expect(usedBlocks()).toBe(0);
  });

  it('of a window are those that later rows see', () => {
    make([{ ...kFull, window: 40 }]);
    const [a, b] = [cache.create(), cache.create()];
    add([a, 200]); // the next row sees positions 161 to 200
    expect(usedBlocks()).toBe(2); // 160 to 199
    add([a, 1]);
    expect(usedBlocks()).toBe(2); // 160 to 200, and room up to 223
    for (let i = 0; i < 40; i++) add([a, 1]);
    expect(usedBlocks()).toBe(2); // 201 to 240: blocks 6 and 7
    add([b, 20]);
    expect(usedBlocks()).toBe(3);
    const fork = cache.fork(a);
    for (let i = 0; i < 60; i++) add([a, 1], [fork, 1]);
    cache.release(a);
    cache.release(fork);
    cache.release(b);
    expect(usedBlocks()).toBe(0);
  });

  it('after the end of a sequence that is shortened are free, unless a fork has them', () => {
    make([kFull, { ...kFull, window: 40 }]);
    const a = cache.create();
    add([a, 100]); // four blocks, and two of the window: 64 to 99
    expect(usedBlocks()).toBe(4 + 3);
    expect(cache.truncate(a, 100)).toBe(true);
    const fork = cache.fork(a);
    expect(cache.truncate(a, 97)).toBe(true);
    expect(cache.lengthOf(a)).toBe(97);
    expect(cache.truncate(a, 80)).toBe(true); // the next row sees 41 to 80
    expect([cache.lengthOf(a), cache.lengthOf(fork)]).toEqual([80, 100]);
    expect(usedBlocks()).toBe(4 + 3);
    cache.release(fork);
    expect(usedBlocks()).toBe(3 + 2);
    // The window of the next row would begin in a block that has been released.
    expect(cache.truncate(a, 50)).toBe(false);
    expect(cache.lengthOf(a)).toBe(80);
    add([a, 1]);
    expect(usedBlocks()).toBe(3 + 2);
    for (const length of [0, 82, 1.5]) {
      expect(() => cache.truncate(a, length)).toThrow('has 81 positions and cannot be shortened');
    }
    cache.release(a);
    expect(usedBlocks()).toBe(0);
  });

  it('come in chunks that grow by a quarter at least, and are freed by dispose', async () => {
    make([kFull, { ...kFull, window: 8 }]);
    await synchronize();
    const before = memoryStats().byTag['kv cache'] ?? 0;
    const a = cache.create();
    const sizes = new Set<number>();
    for (let i = 0; i < 200; i++) {
      add([a, 100]);
      sizes.add(cache.bytes);
    }
    await synchronize();
    expect((memoryStats().byTag['kv cache'] ?? 0) - before).toBe(cache.bytes);
    expect(usedBlocks()).toBe(20_000 / 32 + 1);
    expect(cache.bytes).toBeLessThan(1.3 * cache.usedBytes + 2 * (4 << 20));
    expect(sizes.size).toBeLessThan(20);
    cache.dispose();
    await synchronize();
    expect(memoryStats().byTag['kv cache'] ?? 0).toBe(before);
  });

  it('are as before when a forward fails', () => {
    make([kFull]);
    const a = cache.create();
    add([a, 30]);
    const fork = cache.fork(a);
    const own = { sequences: [a, fork], counts: [50, 1] };
    const failing = () =>
      scope(() =>
        cache.extend({ own }, () => {
          throw new Error('no forward');
        }),
      );
    expect(failing).toThrow('no forward');
    expect([cache.lengthOf(a), cache.lengthOf(fork)]).toEqual([30, 30]);
    expect(usedBlocks()).toBe(2); // that of each: one has been copied
    add([a, 1], [fork, 1]);
    expect(usedBlocks()).toBe(2);
  });
});

describe('a sequence', () => {
  it('that was released, or is named twice, is refused', () => {
    make([kFull]);
    const a = cache.create();
    expect(() => add([a, 1], [a, 1])).toThrow(/each sequence may be named once, got 0, 0/);
    cache.release(a);
    expect(() => cache.fork(a)).toThrow(/sequence 0 is not in the cache/);
    cache.dispose();
    expect(() => cache.create()).toThrow(/has been disposed of/);
  });
});

describe('the ops of a cache', () => {
  const of = (shape: number[], seed: number) => randomTensor(shape, { seed }).to('f32');

  it('refuse operands that do not fit, and to be recorded', () => {
    make([kFull]);
    const a = cache.create();
    const forward = (q: Tensor, heads: number) =>
      scope(() =>
        cache.extend({ own: { sequences: [a], counts: [2] } }, (pass) =>
          pass.attend(0, [q, of([2, heads, 40], 2), of([2, heads, 40], 3)], {}),
        ),
      );
    expect(() => forward(of([2, 4, 40], 1), 3)).toThrow(/cache_append: a chunk must be .*got/);
    forward(of([2, 4, 40], 1), 2).dispose();
    expect(() => forward(of([2, 3, 40], 1), 2)).toThrow(/3 heads of q cannot share the 2 heads/);
    const recorded = of([2, 4, 40], 1);
    recorded.requiresGrad = true;
    expect(() => forward(recorded, 2)).toThrow(/cached_attention: has no gradient/);
    expect(cache.lengthOf(a)).toBe(2);
  });
});

import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { kCacheBlock, kCacheChannels } from '../../lib/ops/kv_cache.ts';

it('the layout of a cache is the one that the kernels define', () => {
  const header = readFileSync('native/kernels/operands/attention.h', 'utf8');
  const defined = (name: string): number =>
    Number(new RegExp(`^#define ${name} (\\d+)$`, 'm').exec(header)?.[1]);
  expect(kCacheBlock).toBe(defined('BALORA_CACHE_BLOCK'));
  expect(kCacheChannels).toBe(defined('BALORA_CACHE_CHANNELS'));
});

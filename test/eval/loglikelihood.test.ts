// Log-likelihoods of many rows, whose logits are computed some at a time.
import { afterEach, expect, it, vi } from 'vitest';
import { loglikelihoods } from '../../lib/eval/loglikelihood.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { Tensor } from '../../lib/tensor.ts';
import { TinyModel } from '../support/tiny_model.ts';

afterEach(() => vi.restoreAllMocks());

const kVocabulary = 2 ** 22; // four rows of logits at a time
const kGroup = [{ context: [1], continuation: [5, 4, 3, 2, 1, 9, 8, 7, 6, 5] }];

it('are enqueued before those of the rows before are read, and leave nothing in memory', async () => {
  const model = new TinyModel({ vocabulary: kVocabulary, width: 2, layers: 1 });
  await synchronize();
  const before = memoryStats().liveBytes;
  const events: string[] = [];
  const [logits, data] = [model.logits.bind(model), Tensor.prototype.data];
  vi.spyOn(model, 'logits').mockImplementation((...all) => {
    events.push(`logits of ${all[1]?.length}`);
    return logits(...all);
  });
  vi.spyOn(Tensor.prototype, 'data').mockImplementation(function (this: Tensor) {
    events.push(`read ${this.shape}`);
    return data.call(this);
  });
  for await (const [found] of loglikelihoods(model, [kGroup])) {
    expect(found?.loglikelihood).toBeLessThan(0);
  }
  expect(events).toEqual([
    ...['logits of 4', 'logits of 4', 'read 4,1', 'read 4'],
    ...['logits of 2', 'read 4,1', 'read 4', 'read 2,1', 'read 2'],
  ]);
  await synchronize();
  expect(memoryStats().liveBytes).toBe(before);
  model.dispose();
});

it('are the sums of those of their tokens', async () => {
  const model = new TinyModel();
  const tokens = [5, 4, 3, 2];
  const pairs = tokens.map((id, i) => [{ context: [tokens[i - 1] ?? 1], continuation: [id] }]);
  const each: number[] = [];
  for await (const [one] of loglikelihoods(model, pairs)) each.push(one?.loglikelihood as number);
  for await (const [all] of loglikelihoods(model, [[{ context: [1], continuation: tokens }]])) {
    expect(all?.loglikelihood).toBeCloseTo(
      each.reduce((sum, one) => sum + one),
      5,
    );
  }
  model.dispose();
});

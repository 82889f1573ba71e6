// Forwards in parts of whole sequences: the parts, and the same bits as in one forward.
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { orReason } from '../../lib/abort.ts';
import { batchOf } from '../../lib/models/batch.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { hiddenInParts, kPartRows, partEnds } from '../../lib/models/parts.ts';
import { zeros } from '../../lib/ops/index.ts';
import { noGrad } from '../../lib/tensor.ts';
import { architecture } from '../support/golden_checkpoints.ts';

describe('parts', () => {
  it('have whole sequences and so many rows at most, unless one has more', () => {
    expect(partEnds([])).toEqual([]);
    expect(partEnds([3, 3, 3], 6)).toEqual([2, 3]);
    expect(partEnds([3, 9, 1, 1], 6)).toEqual([1, 2, 4]);
    expect(partEnds([9], 6)).toEqual([1]);
    expect(partEnds(new Array(128).fill(8000))).toHaveLength(128);
  });

  it.each(['f32', 'bf16'] as const)('give the bits of one forward, in %s', async (dtype) => {
    using model = await AutoModelForCausalLM.fromPretrained(
      join(architecture('llama-tied'), 'model'),
      { dtype },
    );
    // Each sequence is as long as the context, and together they are two parts and a bit.
    const length = Math.min(model.contextLength, 64);
    const count = Math.ceil((2 * kPartRows) / length) + 3;
    const batch = batchOf(
      Array.from({ length: count }, (_, b) =>
        Array.from({ length }, (_, t) => (b * 31 + t * (1 + (b % 7))) % model.vocabSize),
      ),
    );
    const rows = Int32Array.from(
      { length: 3 * count },
      (_, i) => Math.floor(i / 3) * length + 20 * (i % 3),
    );
    const forwards: number[] = [];
    const found = await hiddenInParts(batch, {
      ...{ rows, sharesPrefixes: false, signal: undefined },
      forward: (part, own) => {
        forwards.push(part.inputIds.length);
        return model.forward(part, { rows: own, sharePrefixes: false });
      },
    });
    expect(forwards).toHaveLength(3);
    expect(Math.max(...forwards)).toBeLessThanOrEqual(kPartRows);
    using whole = noGrad(() => model.forward(batch, { rows, sharePrefixes: false }));
    expect(found.shape).toEqual(whole.shape);
    expect(
      Buffer.from((await found.data()).buffer).equals(Buffer.from((await whole.data()).buffer)),
    ).toBe(true);
    found.dispose();
  });

  it('count rows once that sequences begin with, where these are computed once', async () => {
    using model = await AutoModelForCausalLM.fromPretrained(
      join(architecture('llama-tied'), 'model'),
    );
    const length = Math.min(model.contextLength, 64);
    const same = Array.from({ length: length - 1 }, (_, t) => t % model.vocabSize);
    const count = Math.ceil(kPartRows / length) + 1;
    const batch = batchOf(Array.from({ length: count }, (_, b) => [...same, b % model.vocabSize]));
    const rows = Int32Array.from({ length: count }, (_, b) => (b + 1) * length - 1);
    for (const [sharesPrefixes, parts] of [
      [true, 1],
      [false, 2],
    ] as const) {
      let forwards = 0;
      const found = await hiddenInParts(batch, {
        ...{ rows, sharesPrefixes, signal: undefined },
        forward: (part, own) => {
          forwards++;
          return model.forward(part, { rows: own, sharePrefixes: sharesPrefixes });
        },
      });
      expect(forwards).toBe(parts);
      found.dispose();
    }
  });

  it('end with the reason of the signal between two of them', async () => {
    const stop = new AbortController();
    const batch = batchOf([1, 2].map((id) => new Array<number>(kPartRows).fill(id)));
    let forwards = 0;
    const ended = orReason(stop.signal, () =>
      hiddenInParts(batch, {
        ...{ rows: Int32Array.of(0, kPartRows), sharesPrefixes: false, signal: stop.signal },
        forward: () => {
          forwards++;
          stop.abort(new Error('enough'));
          return zeros([1, 4]);
        },
      }),
    );
    await expect(ended).rejects.toThrow('enough');
    expect(forwards).toBe(1);
  });
});

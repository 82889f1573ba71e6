// Rows that several segments share and that are computed once: which rows these are, and that hidden states and gradients equal
// those of a forward that computes every row, in every causal family, whatever the layers keep for backward and whichever rows
// are chosen.
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  type LayerKeep,
  type Model,
  type ModelBatch,
} from '../../lib/models/index.ts';
import { sharedRows } from '../../lib/models/shared_rows.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import {
  architecture,
  goldenNames,
  readGolden,
  relativeError,
} from '../support/golden_checkpoints.ts';
import { readClassifierGolden } from '../support/golden_classifiers.ts';
import { weighed } from '../support/weighed.ts';

const kKeeps: readonly LayerKeep[] = ['saved', 'lean', 'thin', 'checkpointed'];

/** A batch of segments with these ids; `lengths` are their numbers of ids that are no padding. */
function batchOf(
  segments: readonly (readonly number[])[],
  lengths?: readonly number[],
): ModelBatch {
  const ends = segments.map((_, b) => segments.slice(0, b + 1).flat().length);
  return {
    inputIds: Int32Array.from(segments.flat()),
    positions: Int32Array.from(segments.flatMap((ids) => ids.map((_, t) => t))),
    cuSeqlens: Int32Array.from([0, ...ends]),
    ...(lengths ? { lengths: Int32Array.from(lengths) } : {}),
  };
}

/** The result of sharedRows as plain arrays. */
function found(batch: ModelBatch): { rowOf: number[]; firstOf: number[]; cuOwn: number[] } | null {
  const shared = sharedRows(batch);
  if (shared === null) return null;
  const { rowOf, firstOf, cuOwn } = shared;
  return { rowOf: [...rowOf], firstOf: [...firstOf], cuOwn: [...cuOwn] };
}

describe('shared rows', () => {
  it('are those with the same tokens before them', () => {
    expect(
      found(
        batchOf([
          [5, 6, 7],
          [5, 6, 8, 7],
          [6, 7],
          [5, 6, 8, 9],
        ]),
      ),
    ).toEqual({
      rowOf: [0, 1, 2, 0, 1, 3, 4, 5, 6, 0, 1, 3, 7],
      firstOf: [0, 1, 2, 5, 6, 7, 8, 12],
      cuOwn: [0, 3, 5, 7, 8],
    });
  });

  it('may be an entire segment, and there are none in an empty one', () => {
    expect(found(batchOf([[4, 4], [], [4, 4], [4]]))).toEqual({
      rowOf: [0, 1, 0, 1, 0],
      firstOf: [0, 1],
      cuOwn: [0, 2, 2, 2, 2],
    });
  });

  it('have the same position', () => {
    const batch = batchOf([
      [5, 6, 7],
      [5, 6, 8],
    ]);
    expect(found(batch)?.firstOf).toEqual([0, 1, 2, 5]);
    expect(found({ ...batch, positions: Int32Array.of(0, 1, 2, 0, 7, 8) })?.firstOf).toEqual([
      0, 1, 2, 4, 5,
    ]);
    expect(found({ ...batch, positions: Int32Array.of(0, 1, 2, 3, 4, 5) })).toBeNull();
  });

  it('are no padding', () => {
    expect(
      found(
        batchOf(
          [
            [5, 0, 0],
            [5, 0, 0],
          ],
          [1, 2],
        ),
      ),
    ).toEqual({
      rowOf: [0, 1, 2, 0, 3, 4],
      firstOf: [0, 1, 2, 4, 5],
      cuOwn: [0, 3, 5],
    });
  });

  it('are used where they save at least a 32nd of the rows', () => {
    const long = (first: number, size: number) => Array.from({ length: size }, (_, t) => first + t);
    expect(found(batchOf([long(0, 32), [0, ...long(100, 31)]]))).toBeNull();
    expect(found(batchOf([long(0, 16), [0, ...long(100, 15)]]))?.firstOf.length).toBe(31);
    expect(found(batchOf([long(0, 64)]))).toBeNull();
  });
});

/** Three segments of a golden batch's ids: the second shares half of the first, the third a little. */
function alike({ inputIds }: ModelBatch, padded: boolean): ModelBatch {
  const id = (n: number): number => inputIds[n % inputIds.length] as number;
  const ids = (from: number, count: number) =>
    Array.from({ length: count }, (_, t) => id(from + t));
  const first = ids(0, 9);
  const rows = [first, [...first.slice(0, 5), ...ids(3, 4)], [...first.slice(0, 2), ...ids(6, 7)]];
  return batchOf(rows, padded ? [9, 7, 8] : undefined);
}

function expectSame(model: Model, golden: ModelBatch): void {
  for (const parameter of model.parameters()) parameter.requiresGrad = true;
  const tolerance = model.dtype === 'f64' ? 1e-11 : 3e-5;
  for (const padded of [false, true]) {
    const batch = alike(golden, padded);
    expect(model.prepare(batch).ids.shape[0]).toBeLessThan(batch.inputIds.length - 6);
    const valid = (batch.lengths ?? [9, 9, 9]) as ArrayLike<number>;
    const all = Array.from({ length: 27 }, (_, n) => n).filter(
      (n) => n % 9 < (valid[Math.floor(n / 9)] as number),
    );
    for (const rows of [all, [26 - 9, 10, 10, 1, 0]].map((list) => Int32Array.from(list))) {
      for (const keep of kKeeps) {
        model.layerKeep = () => keep;
        model.sharePrefixes = false;
        const want = weighed(model, model.forward(batch, { rows }));
        model.sharePrefixes = true;
        const got = weighed(model, model.forward(batch, { rows }));
        want.forEach((expected, i) => {
          const what = `${padded ? 'padded' : 'whole'} ${rows.length} rows, ${keep}, ${i}`;
          if (values(expected).every((value) => value === 0)) {
            expect(
              values(got[i] as Tensor).every((value) => value === 0),
              what,
            ).toBe(true);
          } else {
            expect(relativeError(got[i] as Tensor, expected), what).toBeLessThan(tolerance);
          }
        });
      }
    }
  }
}

describe.each(['f64', 'f32'] as const)('shared rows in %s', (dtype) => {
  const options = { dtype, trainable: true } as const;

  it.each(goldenNames('causal_lm'))('of %s', async (name) => {
    const { folder, batch } = await readGolden(name);
    const model = await AutoModelForCausalLM.fromPretrained(join(folder, 'model'), options);
    expectSame(model, batch);
  });

  it.each(goldenNames('seq_cls').filter((name) => /llama|qwen|gemma|mistral/.test(name)))(
    'of the classifier %s',
    async (name) => {
      const { folder, batch } = await readClassifierGolden(name);
      const path = join(folder, 'model');
      expectSame(await AutoModelForSequenceClassification.fromPretrained(path, options), batch);
    },
  );
});

describe('a batch with shared rows', () => {
  const batch = batchOf([
    [5, 6, 7, 8],
    [5, 6, 7, 9],
  ]);

  it.each(['llama-tied', 'gpt2'])(
    'counts whole where layers choose what they keep: %s',
    async (name) => {
      const model = await AutoModelForCausalLM.fromPretrained(join(architecture(name), 'model'));
      const rows = new Set<number>();
      model.layerKeep = (_, count) => {
        rows.add(count);
        return 'lean';
      };
      model.forward(batch).dispose();
      expect([...rows]).toEqual([8]);
    },
  );

  it('is computed row by row on request', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(
      join(architecture('llama-tied'), 'model'),
    );
    const { ids, rowOf } = model.prepare(batch, { sharePrefixes: false });
    expect([ids.shape, rowOf]).toEqual([[8], null]);
  });
});

describe('rows with the same tokens before them are not shared', () => {
  const batch = batchOf([
    [5, 6, 7, 8],
    [5, 6, 7, 9],
  ]);
  const computed = (model: Model): number => model.prepare(batch).ids.shape[0] as number;

  it('in an encoder', async () => {
    const { folder } = await readClassifierGolden('bert');
    const model = await AutoModelForSequenceClassification.fromPretrained(join(folder, 'model'));
    expect(computed(model)).toBe(8);
  });

  it('in a pass with dropout', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(
      join(architecture('llama-tied'), 'model'),
    );
    expect(computed(model)).toBe(5);
    const tuned = await AdapterModel.create(model, { r: 2, loraDropout: 0.5 });
    expect(computed(model)).toBe(5);
    tuned.trainingPass({ step: 0, microBatch: 0 });
    expect(computed(model)).toBe(8);
    tuned.trainingPass(null);
    expect(computed(model)).toBe(5);
  });
});

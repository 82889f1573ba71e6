// Hidden states of chosen rows, which the last layer computes alone, against all rows and a selection afterwards: values and
// gradients in every family that shares the loop over the layers, whatever the layers keep for backward.
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  AutoModelForCausalLM,
  AutoModelForSeq2SeqLM,
  AutoModelForSequenceClassification,
  type CausalLM,
  type LayerKeep,
  type Model,
  type ModelBatch,
} from '../../lib/models/index.ts';
import { indexSelect } from '../../lib/ops/index.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import {
  architecture,
  goldenNames,
  readGolden,
  relativeError,
} from '../support/golden_checkpoints.ts';
import { readClassifierGolden } from '../support/golden_classifiers.ts';
import { weighed } from '../support/weighed.ts';

// Other golden Llamas differ only in numbers that do not matter here.
const kLlamas = ['llama-biases', 'llama-untied-gqa'];
const kCausal = goldenNames('causal_lm').filter(
  (name) => !name.startsWith('llama') || kLlamas.includes(name),
);
const kClassifiers = goldenNames('seq_cls');
const kKeeps: readonly LayerKeep[] = ['saved', 'lean', 'thin', 'checkpointed'];

/** Every other row in reverse order, as a loss may choose them. */
const someRows = (count: number): Int32Array =>
  Int32Array.from({ length: Math.ceil(count / 2) }, (_, i) => count - 1 - 2 * i);

/** The largest magnitude in a tensor; NaN counts as infinite. */
const sizeOf = (tensor: Tensor): number =>
  values(tensor).reduce<number>(
    (most, value) =>
      Number.isNaN(value) ? Number.POSITIVE_INFINITY : Math.max(most, Math.abs(value)),
    0,
  );

function expectSame(model: Model, rows: Int32Array, forward: (rows?: Int32Array) => Tensor): void {
  for (const parameter of model.parameters()) parameter.requiresGrad = true;
  const tolerance = model.dtype === 'f64' ? 1e-11 : 3e-5;
  for (const keep of kKeeps) {
    model.layerKeep = () => keep;
    const want = weighed(model, indexSelect(forward(), tensor(rows)));
    const got = weighed(model, forward(rows));
    const largest = Math.max(...want.map(sizeOf));
    want.forEach((expected, i) => {
      // The gradient of a key's bias is zero, as the softmax does not change with it, and its values are roundings.
      const zero = sizeOf(expected) === 0 ? 0 : (model.dtype === 'f64' ? 1e-14 : 1e-6) * largest;
      if (sizeOf(expected) <= zero) {
        expect(sizeOf(got[i] as Tensor), `${keep} ${i}`).toBeLessThanOrEqual(zero);
      } else {
        expect(relativeError(got[i] as Tensor, expected), `${keep} ${i}`).toBeLessThan(tolerance);
      }
    });
  }
}

describe.each(['f64', 'f32'] as const)('chosen rows in %s', (dtype) => {
  const options = { dtype, trainable: true } as const;

  it.each(kCausal)('of %s', async (name) => {
    const { folder, batch } = await readGolden(name);
    const model = await AutoModelForCausalLM.fromPretrained(join(folder, 'model'), options);
    expect(batch.cuSeqlens.length).toBeGreaterThan(2); // there are several segments
    expectSame(model, someRows(batch.inputIds.length), (rows) => model.forward(batch, { rows }));
  });

  it.each(['t5', 't5-v1.1'])('of the decoder of %s', async (name) => {
    const path = join(architecture(name), 'model');
    const model = await AutoModelForSeq2SeqLM.fromPretrained(path, options);
    const batch = { ...segments([4, 6]), decoder: segments([5, 3]) };
    expectSame(model, someRows(8), (rows) => model.forward(batch, { rows }));
  });

  it.each(kClassifiers)("of %s, also as its head's inputs", async (name) => {
    const { folder, batch } = await readClassifierGolden(name);
    const path = join(folder, 'model');
    const model = await AutoModelForSequenceClassification.fromPretrained(path, options);
    expectSame(model, someRows(batch.inputIds.length), (rows) => model.forward(batch, { rows }));
    const [all, chosen] = noGrad(() => [
      model.logits(model.forward(batch), batch),
      model.outputs(batch),
    ]);
    expect(relativeError(chosen as Tensor, all as Tensor)).toBeLessThan(
      dtype === 'f64' ? 1e-12 : 1e-5,
    );
  });
});

describe('rows of a forward', () => {
  const load = (): Promise<CausalLM> =>
    AutoModelForCausalLM.fromPretrained(join(architecture('llama-tied'), 'model'));

  it('may repeat, and may be all of them', async () => {
    const model = await load();
    const batch = segments([5, 4]);
    const [all, repeated, whole] = noGrad(() => [
      model.forward(batch),
      model.forward(batch, { rows: [3, 3, 0] }),
      model.forward(batch, { rows: Int32Array.from({ length: 9 }, (_, i) => i) }),
    ]) as [Tensor, Tensor, Tensor];
    const selected = noGrad(() => indexSelect(all, tensor(Int32Array.of(3, 3, 0))));
    expect(relativeError(repeated, selected)).toBeLessThan(1e-5);
    expect(values(whole)).toEqual(values(all));
  });

  it('are refused outside the batch', async () => {
    const model = await load();
    const run = (rows: number[]) => () => model.forward(segments([5, 4]), { rows });
    expect(run([])).toThrow(/forward: rows must have at least one row, got none/);
    expect(run([0, 9])).toThrow(/forward: rows\[1\] must be 0 to 8, a row of the batch, got 9/);
    expect(run([-1])).toThrow(/rows\[0\] .*, got -1/);
    expect(run([0.5])).toThrow(/rows\[0\] .*, got 0\.5/);
  });
});

/** A batch of segments with these lengths and arbitrary ids. */
function segments(lengths: readonly number[]): ModelBatch {
  const positions = lengths.flatMap((length) => Array.from({ length }, (_, i) => i));
  const ends = lengths.map((_, b) => lengths.slice(0, b + 1).reduce((a, c) => a + c, 0));
  return {
    inputIds: Int32Array.from(positions, (_, i) => 3 + ((i * 7) % 20)),
    positions: Int32Array.from(positions),
    cuSeqlens: Int32Array.from([0, ...ends]),
  };
}

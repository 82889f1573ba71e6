// A real model: SmolLM2-135M from its Q4_1 GGUF file against transformers on the same (dequantised) weights.
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { loadSafetensors } from '../../lib/io/safetensors.ts';
import { AutoModelForCausalLM, type ModelBatch } from '../../lib/models/index.ts';
import { logSumExp } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kModel = 'models/smollm2-135m-instruct-gguf';
const kGolden = 'golden/smollm2/forward.safetensors';
const kTolerance = 5e-4; // the golden README measured differences of 1e-4 and 2e-4 between f32 and f64
const kTop = 20;

function batchOf(ids: readonly number[]): ModelBatch {
  return {
    inputIds: Int32Array.from(ids),
    positions: Int32Array.from(ids, (_, i) => i),
    cuSeqlens: Int32Array.of(0, ids.length),
  };
}

function largestError(got: Float64Array, want: Float64Array): number {
  expect(got.length).toBe(want.length);
  return want.reduce((worst, v, i) => Math.max(worst, Math.abs((got[i] as number) - v)), 0);
}

describeShared('SmolLM2-135M', [kModel, kGolden], () => {
  const golden = loadSafetensors(sharedPath(kGolden)).then(({ tensors }) => tensors);
  const get = async (key: string): Promise<Float64Array> => values((await golden)[key] as Tensor);

  it('gives the hidden states, logits and log-sum-exp of transformers in f32', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(sharedPath(kModel));
    for (let text = 0; text < 6; ++text) {
      const ids = Array.from(await get(`text${text}.ids`));
      const [hidden, logits, sums] = scope(() =>
        noGrad(() => {
          const h = model.forward(batchOf(ids));
          const z = model.logits(h);
          return [h, z, logSumExp(z, { axis: 1 })] as const;
        }),
      );
      expect(
        largestError(values(hidden), await get(`text${text}.hidden`)),
        `hidden ${text}`,
      ).toBeLessThan(kTolerance);
      const lse = values(sums);
      expect(largestError(lse, await get(`text${text}.logsumexp`)), `lse ${text}`).toBeLessThan(
        kTolerance,
      );
      const z = logits.dataSync() as Float32Array;
      const v = model.vocabSize;
      const ofTop = (await get(`text${text}.top_ids`)).map(
        (id, i) => z[Math.floor(i / kTop) * v + id] as number,
      );
      expect(
        largestError(ofTop, await get(`text${text}.top_logits`)),
        `logits ${text}`,
      ).toBeLessThan(kTolerance);
      const logprob = Float64Array.from(
        ids.slice(1),
        (id, t) => (z[t * v + id] as number) - (lse[t] as number),
      );
      expect(
        largestError(logprob, await get(`text${text}.next_logprob`)),
        `logprob ${text}`,
      ).toBeLessThan(kTolerance);
      for (const t of [hidden, logits, sums]) t.dispose();
    }
    model.dispose();
  });

  it('gives each text of a packed batch the numbers it has alone', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(sharedPath(kModel));
    const texts = await Promise.all(
      [2, 1, 3].map(async (i) => Array.from(await get(`text${i}.ids`))),
    );
    const cuSeqlens = Int32Array.from([
      0,
      ...texts.map((_, i) => texts.slice(0, i + 1).flat().length),
    ]);
    const packed = {
      inputIds: Int32Array.from(texts.flat()),
      positions: Int32Array.from(texts.flatMap((ids) => ids.map((_, i) => i))),
      cuSeqlens,
    };
    const hidden = values(noGrad(() => model.forward(packed)));
    const parts = await Promise.all([2, 1, 3].map((i) => get(`text${i}.hidden`)));
    expect(
      largestError(hidden, Float64Array.from(parts.flatMap((p) => Array.from(p)))),
    ).toBeLessThan(kTolerance);
    model.dispose();
  });

  // One rounding to bf16 has a relative error of 2^-9. Through 30 layers of residual sums the hidden states (of values up to 34)
  // get an error of 1.6 per cent of their norm. The tolerance is twice the measured error, so that a mistake (tens of per cent)
  // is found.
  it('stays close in bf16', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(sharedPath(kModel), { dtype: 'bf16' });
    const ids = Array.from(await get('text4.ids'));
    const want = await get('text4.hidden');
    const got = values(noGrad(() => model.forward(batchOf(ids))));
    const norm = (x: Float64Array): number => Math.hypot(...Array.from(x));
    const relative = norm(got.map((v, i) => v - (want[i] as number))) / norm(want);
    expect(relative).toBeLessThan(0.03);
    model.dispose();
  });

  it('is loaded from its file as well as from its folder', async () => {
    const path = join(sharedPath(kModel), 'SmolLM2-135M-Instruct.Q4_1.gguf');
    const model = await AutoModelForCausalLM.fromPretrained(path);
    expect(Array.from(model.namedParameters())).toHaveLength(272);
    expect(model.vocabSize).toBe(49152);
    model.dispose();
  });
});

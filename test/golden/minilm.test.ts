// A real encoder, all-MiniLM-L6-v2, against transformers on the same weights (float16, widened).
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { loadSafetensors } from '../../lib/io/safetensors.ts';
import type { EncoderEmbeddings, Segments } from '../../lib/models/encoder.ts';
import {
  AutoModelForSequenceClassification as Auto,
  type SequenceClassifier,
} from '../../lib/models/index.ts';
import { type Layer, runLayers } from '../../lib/models/layers.ts';
import { modelInputs } from '../../lib/models/model.ts';
import type { Linear } from '../../lib/nn/index.ts';
import { tanh } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { unpadded } from '../support/golden_classifiers.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

/** The modules of the checkpoint. */
interface Bert extends SequenceClassifier {
  readonly bert: {
    readonly embeddings: EncoderEmbeddings;
    readonly encoder: { readonly layer: readonly Layer<Segments>[] };
    readonly pooler: { readonly dense: Linear };
  };
  readonly classifier: Linear;
}

const kModel = 'models/all-minilm-l6-v2';
const kGolden = 'golden/nlu/nlu.safetensors';
/**
 * Tolerances of the golden README for logits in f32 (absolute) and bf16 (relative to the largest). Those of hidden states
 * (relative to the largest) and of pooled states are 10 times the measured error of torch's float32.
 */
const kTolerance = { logits: 1e-5, pooled: 8e-6, bf16: 3e-2, hidden: { f32: 2e-6, f64: 1e-9 } };

describeShared('MiniLM', [kModel, kGolden], () => {
  const golden = loadSafetensors(sharedPath(kGolden)).then(({ tensors }) => tensors);
  const numbers = async (key: string) =>
    Array.from((await golden)[key]?.dataSync() as ArrayLike<number>, Number);
  const batchOf = async () => {
    const [ids, mask] = [await numbers('input_ids'), await numbers('attention_mask')];
    return unpadded({ ids, mask }, 48).batch;
  };
  const load = async (dtype: 'f32' | 'bf16' | 'f64') => {
    const model = await Auto.fromPretrained(sharedPath(kModel), { numLabels: 2, dtype });
    return model as Bert;
  };
  /** The rows of the first tokens. */
  const firstRows = (t: Tensor, cuSeqlens: Int32Array): number[] => {
    const [width, all] = [t.shape[1] as number, values(t)];
    return Array.from(cuSeqlens.slice(0, -1)).flatMap((row) =>
      Array.from(all.slice(row * width, (row + 1) * width)),
    );
  };
  const largestError = (got: ArrayLike<number>, want: readonly number[]): number => {
    expect(got.length).toBe(want.length);
    return want.reduce((worst, v, i) => Math.max(worst, Math.abs((got[i] as number) - v)), 0);
  };

  it.each(['f32', 'f64'] as const)(
    'gives the hidden states after every layer in %s',
    async (dtype) => {
      const model = await load(dtype);
      const batch = await batchOf();
      const want = await numbers('cls_hidden_states');
      const states = scope(() =>
        noGrad(() => {
          const inputs = modelInputs(batch);
          const all = [model.bert.embeddings.forward(inputs)];
          for (const layer of model.bert.encoder.layer) {
            const { cuSeqlens, lengths } = inputs;
            const shared = {
              shared: { cuSeqlens, lengths },
              last: null,
              wanted: null,
              keep: () => 'saved' as const,
            };
            all.push(runLayers([layer], all.at(-1) as Tensor, shared));
          }
          return [...all, model.forward(batch)];
        }),
      );
      const count = want.length / 7;
      const largest = Math.max(...want.map(Math.abs));
      states.forEach((state, i) => {
        const layer = Math.min(i, 6); // the last one is the result of forward
        const error = largestError(
          firstRows(state, batch.cuSeqlens),
          want.slice(layer * count, (layer + 1) * count),
        );
        expect(error, `state ${i}`).toBeLessThan(kTolerance.hidden[dtype] * largest);
      });
    },
  );

  it('has no head of its own, and gives the golden pooled states and logits with the golden head', async () => {
    const model = await load('f32');
    expect(model.newlyInitialized).toEqual(['classifier.weight', 'classifier.bias']);
    const batch = await batchOf();
    for (const name of ['weight', 'bias'] as const) {
      const head = (await golden)[`classifier.${name}`] as Tensor;
      model.replaceParameter(model.classifier[name] as Tensor, head);
    }
    const [pooled, logits] = noGrad(() => {
      const hidden = model.forward(batch);
      const pooled = tanh(model.bert.pooler.dense.forward(hidden));
      return [pooled, model.logits(hidden, batch)] as const;
    });
    expect(largestError(firstRows(pooled, batch.cuSeqlens), await numbers('pooled'))).toBeLessThan(
      kTolerance.pooled,
    );
    expect(largestError(values(logits), await numbers('teacher_logits'))).toBeLessThan(
      kTolerance.logits,
    );
  });

  it.each(['f32', 'bf16'] as const)('gives the adapted logits in %s', async (dtype) => {
    const model = await load(dtype);
    await AdapterModel.fromPretrained(model, sharedPath('golden/nlu/adapter'));
    const batch = await batchOf();
    const logits = noGrad(() => model.logits(model.forward(batch), batch));
    const want = await numbers('logits');
    const largest = Math.max(...want.map(Math.abs));
    expect(largestError(values(logits), want)).toBeLessThan(
      dtype === 'f32' ? kTolerance.logits : kTolerance.bf16 * largest,
    );
  });

  it('takes adapters on the modules that PEFT names', async () => {
    const model = await load('f32');
    const { lora } = JSON.parse(readFileSync(sharedPath('golden/nlu/nlu.json'), 'utf8'));
    const adapter = await AdapterModel.create(model, { r: 8, targetModules: lora.targets });
    const { tensors } = await loadSafetensors(
      sharedPath('golden/nlu/adapter/adapter_model.safetensors'),
    );
    const named = Object.keys(tensors)
      .filter((key) => key.endsWith('.lora_A.weight'))
      .map((key) => key.slice('base_model.model.'.length, -'.lora_A.weight'.length));
    expect(adapter.modules.map(({ name }) => name).sort()).toEqual(named.sort());
    adapter.dispose();
    const all = await AdapterModel.create(model, { r: 2, targetModules: 'all-linear' });
    expect(all.modules.map(({ name }) => name)).not.toContain('classifier');
    expect(all.modules).toHaveLength(lora.modules);
  });
});

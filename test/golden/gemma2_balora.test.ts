/** A BA-LoRA step on Gemma 2, whose logits are soft-capped: the fused losses of the trainer against the plain ones. */
import { describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { baLoraPlainLoss, headLogits } from '../../lib/losses/plain.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { indexSelect } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { accumulator } from '../support/accumulate.ts';
import { fixturePath, relativeError } from '../support/fixtures.ts';
import { goldenArrays } from '../support/golden.ts';
import { goldenBatch, windowOf } from '../support/golden_batch.ts';

const kFolder = fixturePath('architectures/gemma2');
const kWeights = { consistency: 0.3, diversity: 0.1, svd: 0.2 };
const kOptions = { temperature: 2, entropyTopK: 20, svdTopK: 5 };
/** The tolerance of the golden gradients (grad_abs_over_max_abs of expected.json). */
const kTolerance = 5e-5;

describe('BA-LoRA on gemma2', () => {
  it('has the terms and gradients of the plain losses, with soft-caps on scores and logits', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(`${kFolder}/model`);
    expect(model.head.softcap).toBe(5);
    const tuned = await AdapterModel.fromPretrained(model, `${kFolder}/adapter`);
    const { batch } = goldenBatch(goldenArrays(`${kFolder}/inputs.safetensors`), {
      ids: 'input_ids',
      mask: 'attention_mask',
      labels: 'labels',
    });

    const objective = accumulator(tuned, {
      consistencyWeight: kWeights.consistency,
      diversityWeight: kWeights.diversity,
      svdWeight: kWeights.svd,
      consistencySchedule: 'constant',
      regularizerSchedule: 'constant',
      ...kOptions,
    });
    const fused = await objective.accumulate(windowOf(batch));
    objective.dispose();
    const gradients = new Map(
      tuned.parameters().map(({ name, tensor: t }) => [name, t.grad?.dataSync() as Float32Array]),
    );
    for (const { tensor: parameter } of tuned.parameters()) parameter.grad = null;

    const supervised = Array.from(batch.targets.keys()).filter((n) => batch.targets[n] !== -100);
    const rows = tensor(Int32Array.from(supervised));
    const targets = tensor(Int32Array.from(supervised, (n) => batch.targets[n] as number));
    const logitsOf = (hidden: Tensor): Tensor =>
      headLogits(indexSelect(hidden, rows), model.head.weight, { softcap: model.head.softcap });
    const terms = scope(() => {
      const teacherLogits = noGrad(() => tuned.withTeacher((m) => logitsOf(m.forward(batch))));
      const logits = logitsOf(model.forward(batch));
      const plain = baLoraPlainLoss(
        { logits, teacherLogits, targets },
        { weights: kWeights, ...kOptions },
      );
      plain.loss.backward();
      return [plain.task, plain.consistency as Tensor, plain.diversity, plain.svd, plain.loss];
    }).map((term) => term.itemSync());

    const { taskLoss, consistency, diversity, svd, loss } = fused as unknown as Record<
      string,
      number
    >;
    [taskLoss, consistency, diversity, svd, loss].forEach((value, i) => {
      expect(Math.abs((value as number) - (terms[i] as number))).toBeLessThan(1e-5);
    });
    expect(terms[1]).toBeGreaterThan(0.1); // the adapter changes the model's outputs
    for (const { name, tensor: parameter } of tuned.parameters()) {
      const want = parameter.grad?.dataSync() as Float32Array;
      expect(relativeError(gradients.get(name) as Float32Array, want), name).toBeLessThan(
        kTolerance,
      );
    }
    tuned.dispose();
    model.dispose();
  });
});

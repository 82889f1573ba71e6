import { expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../../lib/adapters/full_model.ts';
import { AutoModelForCausalLM } from '../../../lib/models/index.ts';
import { opTimes, resetOpTimes, synchronize } from '../../../lib/runtime.ts';
import type { Tensor } from '../../../lib/tensor.ts';
import { Trainer } from '../../../lib/train/trainer.ts';
import { TinyModel, tinyBatches, tinySource } from '../../support/tiny_model.ts';
import { tinyTokenizer } from '../../support/tiny_tokenizer.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);
const data = tinySource(tinyBatches());

it('leaves A as it is, without a gradient or moments, and trains B', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), { method: 'lora_fa', r: 3 });
  const before = new Map(tuned.parameters().map(({ name, tensor }) => [name, numbers(tensor)]));
  const withGradient = new Set<string>();
  const trainer = new Trainer({
    ...{ tuned, data, learningRate: 0.01, maxSteps: 3 },
    afterBackward: ({ parameters }) => {
      for (const { name, tensor } of parameters) if (tensor.grad !== null) withGradient.add(name);
    },
  });
  const { trainableParameters, memory } = await trainer.plan();
  const inB = tuned.modules.reduce((sum, { pair }) => sum + pair.b.size, 0);
  expect(trainableParameters).toBe(inB);
  expect(memory.optimizerBytes).toBe(4 * (2 * inB + inB));
  await trainer.train();
  expect([...withGradient].every((name) => name.endsWith('.lora_B'))).toBe(true);
  expect(withGradient.size).toBe(tuned.modules.length);
  for (const { name, tensor } of tuned.parameters()) {
    const isSame = numbers(tensor).every((value, i) => value === before.get(name)?.[i]);
    expect(isSame, name).toBe(name.endsWith('.lora_A'));
    expect(tensor.requiresGrad, name).toBe(true);
  }
});

it('computes nothing again for the gradient of A, and keeps no input of its product', async () => {
  const { vocabSize } = tinyTokenizer();
  const backwardOf = async (method: 'lora' | 'lora_fa') => {
    const model = await AutoModelForCausalLM.fromConfig({
      ...{ model_type: 'llama', vocab_size: vocabSize, hidden_size: 16, intermediate_size: 32 },
      ...{ num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1 },
      ...{ rms_norm_eps: 1e-5, max_position_embeddings: 64, tie_word_embeddings: true },
    });
    const tuned = await AdapterModel.create(model, { method, r: 3 });
    await synchronize();
    resetOpTimes();
    await new Trainer({
      ...{ tuned, data: tinySource(tinyBatches({ vocabulary: 11 })), maxSteps: 1 },
    }).train();
    await synchronize();
    const ops = opTimes().filter(({ phase }) => phase === 'backward');
    tuned.dispose();
    model.dispose();
    return ops.map(({ op }) => op).filter((op) => op === 'gated' || op === 'rms_norm');
  };
  expect(await backwardOf('lora')).toEqual(expect.arrayContaining(['gated', 'rms_norm']));
  expect(await backwardOf('lora_fa')).toEqual([]);
});

it.each(['lora_fa', 'riemannian'] as const)('%s is refused without a pair A, B', async (optim) => {
  const tuned = new FullModel(new TinyModel());
  await expect(new Trainer({ tuned, data, optim, maxSteps: 1 }).train()).rejects.toThrow(
    `optim ${optim} is for adapters with a pair A and B, which this model does not train; choose adamw`,
  );
  expect(tuned.parameters().every(({ tensor }) => tensor.requiresGrad)).toBe(true);
});

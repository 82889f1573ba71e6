// Loading reports the number of loaded tensors, for every task and file format.
import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSeq2SeqLM,
  demoCheckpoint,
} from '../../lib/models/index.ts';
import { kTinyT5 } from '../support/tiny_seq2seq.ts';

it.each([
  ['a causal language model', () => AutoModelForCausalLM, demoCheckpoint],
  ['an encoder-decoder', () => AutoModelForSeq2SeqLM, kTinyT5],
])('%s: one call a tensor, the last one with all of them', async (_, auto, path) => {
  const calls: [number, number][] = [];
  const onProgress = (loaded: number, total: number) => void calls.push([loaded, total]);
  const model = await auto().fromPretrained(path, { onProgress });
  const total = calls.at(-1)?.[1] as number;
  expect(total).toBe(new Set(model.parameters()).size);
  expect(calls.map(([loaded]) => loaded)).toEqual(Array.from({ length: total }, (_, i) => i + 1));
  model.dispose();
});

it('initialising an adapter reports the number of initialised modules', async () => {
  const model = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
  const calls: [number, number][] = [];
  const onProgress = (modules: number, total: number) => void calls.push([modules, total]);
  const tuned = await AdapterModel.create(
    model,
    { r: 2, initLoraWeights: 'pissa' },
    { onProgress },
  );
  expect(calls.at(-1)).toEqual([tuned.modules.length, tuned.modules.length]);
  tuned.dispose();
});

// Work under a caller's signal lets go of it at its end. Node 20 never frees a composite signal that has a listener.
import { getEventListeners } from 'node:events';
import { expect, it } from 'vitest';
import { AdapterModel } from '../lib/adapters/adapter_model.ts';
import { evaluateClassifier } from '../lib/eval/classify.ts';
import { evaluate } from '../lib/eval/evaluate.ts';
import { loglikelihoods } from '../lib/eval/loglikelihood.ts';
import { openChat } from '../lib/generate/chat.ts';
import { generate } from '../lib/generate/generate.ts';
import { AutoModelForCausalLM, demoCheckpoint } from '../lib/models/index.ts';
import { calibrate } from '../lib/train/calibrate.ts';
import { chatTokenizer } from './support/chat_model.ts';
import { collectGarbage } from './support/collect_garbage.ts';
import { tinyClassifier, tinyLabelled } from './support/tiny_classifier.ts';
import { TinyModel, tinyBatches, tinySource } from './support/tiny_model.ts';

type Work = (signal: AbortSignal) => Promise<unknown>;

const works: Record<string, () => Work | Promise<Work>> = {
  generate: () => {
    const model = new TinyModel();
    return (signal) => generate(model, { ids: [1, 2], maxNewTokens: 2, signal }).result;
  },
  'a turn of a conversation': async () => {
    const model = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
    const tokenizer = chatTokenizer();
    return (signal) =>
      openChat(model, { tokenizer, maxNewTokens: 2 }).send('Hello', { signal }).result;
  },
  evaluate: async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 2 });
    return (signal) => evaluate(tuned, tinyBatches({ count: 2 }), { signal });
  },
  'evaluate of a classifier': async () => {
    const model = await tinyClassifier();
    const data = await tinyLabelled(4);
    return (signal) => evaluateClassifier(model, data.batches(0, 0), { signal });
  },
  loglikelihoods: () => {
    const model = new TinyModel();
    const groups = [[{ context: [1], continuation: [2, 3] }]];
    return async (signal) => {
      for await (const _ of loglikelihoods(model, groups, { signal }));
    };
  },
  calibrate: () => (signal) =>
    calibrate(
      new TinyModel(),
      { r: 2, method: 'eva' },
      { data: tinySource(tinyBatches({ count: 2 })), signal },
    ),
};

it.each(Object.entries(works))('%s', async (_, make) => {
  const work = await make();
  let most = 0;
  const controllers = Array.from({ length: 8 }, () => new AbortController());
  const held = await Promise.all(
    controllers.map(async (controller) => {
      const signal = AbortSignal.any([controller.signal]);
      const add = signal.addEventListener.bind(signal);
      signal.addEventListener = (...all: Parameters<typeof add>) => {
        add(...all);
        most = Math.max(most, getEventListeners(signal, 'abort').length);
      };
      await work(signal);
      return { signal: new WeakRef(signal), listeners: getEventListeners(signal, 'abort').length };
    }),
  );
  expect(most).toBeGreaterThan(0); // it listened
  expect(held.map(({ listeners }) => listeners)).toEqual(controllers.map(() => 0));
  await collectGarbage();
  expect(held.filter(({ signal }) => signal.deref() !== undefined).length).toBeLessThan(3);
});

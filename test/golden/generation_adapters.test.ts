// Greedy generation of SmolLM2-135M with a LoRA adapter, against PEFT: prompts of different lengths in one batch. (Without an adapter
// it is in generation.test.ts.)
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { generate } from '../../lib/generate/generate.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kModel = 'models/smollm2-135m-instruct-gguf';
const kGolden = 'golden/smollm2/generate.json';
/** The number of tokens by which most of the texts differ from those without the adapter. */
const kNewTokens = 12;

describeShared('SmolLM2-135M with an adapter', [kModel, kGolden], () => {
  it('generates what PEFT does', async () => {
    const golden = JSON.parse(readFileSync(sharedPath(kGolden), 'utf8')) as {
      adapter: string;
      prompts: { prompt_ids: number[]; adapter: { ids: number[] } }[];
    };
    using model = await AutoModelForCausalLM.fromPretrained(sharedPath(kModel));
    const adapter = sharedPath(`golden/smollm2/${golden.adapter}`);
    const tuned = await AdapterModel.fromPretrained(model, adapter);
    const results = await generate(tuned, {
      ids: golden.prompts.map(({ prompt_ids }) => prompt_ids),
      ...{ maxNewTokens: kNewTokens, eosTokenIds: [] },
    }).result;
    expect(results.map(({ tokens }) => tokens)).toEqual(
      golden.prompts.map(({ adapter: { ids } }) => ids.slice(0, kNewTokens)),
    );
    tuned.dispose();
  });
});

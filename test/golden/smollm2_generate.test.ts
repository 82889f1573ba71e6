// Greedy decoding of SmolLM2-135M with a cache of keys and values, in f32, with and without an adapter.
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { openCachedSession } from '../../lib/generate/cached_session.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { noGrad } from '../../lib/tensor.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kModel = 'models/smollm2-135m-instruct-gguf';
const kGolden = 'golden/smollm2/generate.json';

interface Prompt {
  readonly prompt_ids: readonly number[];
  readonly base: { readonly ids: readonly number[] };
  readonly adapter: { readonly ids: readonly number[] };
}

async function greedy(model: CausalLM, prompts: readonly Prompt[], count: number) {
  const session = openCachedSession(model, { run: noGrad, maxLength: 200 });
  const started = await session.prefill(
    prompts.map(({ prompt_ids }) => Int32Array.from(prompt_ids)),
  );
  const ids: number[][] = prompts.map(() => []);
  let rows = started.map(({ logits }) => logits);
  for (let n = 0; n < count; n++) {
    rows.forEach((row, i) => {
      ids[i]?.push(row.reduce((best, value, id) => (value > (row[best] as number) ? id : best), 0));
    });
    if (n === count - 1) break;
    const tokens = ids.map((own) => own.at(-1) as number);
    rows = [
      ...(await session.step(
        started.map(({ sequence }) => sequence),
        tokens,
      )),
    ];
  }
  session.dispose();
  return ids;
}

describeShared('SmolLM2-135M decodes as transformers does', [kModel, kGolden], () => {
  const golden = JSON.parse(readFileSync(sharedPath(kGolden), 'utf8')) as {
    adapter: string;
    new_tokens: number;
    prompts: readonly Prompt[];
  };

  it('in f32, five prompts at a time, with and without an adapter', {
    timeout: 600_000,
  }, async () => {
    using model = await AutoModelForCausalLM.fromPretrained(sharedPath(kModel), { dtype: 'f32' });
    const { prompts, new_tokens } = golden;
    expect(await greedy(model, prompts, new_tokens)).toEqual(prompts.map(({ base }) => base.ids));
    const tuned = await AdapterModel.fromPretrained(
      model,
      sharedPath(`golden/smollm2/${golden.adapter}`),
    );
    expect(await greedy(tuned.model, prompts, new_tokens)).toEqual(
      prompts.map(({ adapter }) => adapter.ids),
    );
    tuned.dispose();
  });
});

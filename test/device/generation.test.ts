// Generation on a device: the ids of the CPU, and the same bits for a sequence alone and among others, in f32 (on a GPU the products'
// own kernels in place of cuBLAS) and bf16, with an adapter.
import { describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { openCachedSession } from '../../lib/generate/cached_session.ts';
import { generate } from '../../lib/generate/generate.ts';
import { argmax } from '../../lib/generate/scores.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { noGrad } from '../../lib/tensor.ts';
import { fixturePath } from '../support/fixtures.ts';

const kFolder = fixturePath('architectures/llama-untied-gqa');
const kPrompts = [[3, 9, 4, 17, 5], [8], [21, 2, 2, 30, 7, 6, 11, 19]];

async function withModel(
  device: string | undefined,
  dtype: 'f32' | 'bf16',
  body: (model: CausalLM) => Promise<void>,
): Promise<void> {
  using model = await AutoModelForCausalLM.fromPretrained(`${kFolder}/model`, {
    ...{ dtype, ...(device === undefined ? {} : { device }) },
  });
  const tuned = await AdapterModel.fromPretrained(model, `${kFolder}/adapter`);
  await body(tuned.model);
  tuned.dispose();
}

/** The logits of each prompt and of three steps after it, greedily. */
async function decode(model: CausalLM, prompts: readonly number[][]): Promise<Float32Array[][]> {
  const session = openCachedSession(model, { run: noGrad, maxLength: 40 });
  const started = await session.prefill(prompts.map((ids) => Int32Array.from(ids)));
  const found = started.map(({ logits }) => [logits]);
  for (let n = 0; n < 3; n++) {
    const tokens = found.map((rows) => argmax(rows.at(-1) as Float32Array));
    const rows = await session.step(
      started.map(({ sequence }) => sequence),
      tokens,
    );
    for (const [i, row] of rows.entries()) found[i]?.push(row);
  }
  session.dispose();
  return found;
}

describe.each(['f32', 'bf16'] as const)('generation in %s', (dtype) => {
  it('gives a sequence the same bits alone and among others', async () => {
    await withModel(undefined, dtype, async (model) => {
      const together = await decode(model, kPrompts);
      for (const [i, prompt] of kPrompts.entries()) {
        const [alone] = await decode(model, [prompt]);
        expect(alone).toEqual(together[i]);
      }
    });
  });
});

it('gives the ids of the CPU', async () => {
  const idsOn = async (device?: string) => {
    let ids: (readonly number[])[] = [];
    await withModel(device, 'f32', async (model) => {
      const results = await generate(model, { ids: kPrompts, maxNewTokens: 6, eosTokenIds: [] })
        .result;
      ids = results.map(({ tokens }) => tokens);
    });
    return ids;
  };
  expect(await idsOn()).toEqual(await idsOn('cpu'));
});

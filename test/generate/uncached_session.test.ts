import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { UncachedSession } from '../../lib/generate/uncached_session.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSeq2SeqLM,
  type CausalLM,
  type Seq2SeqLM,
} from '../../lib/models/index.ts';
import { noGrad } from '../../lib/tensor.ts';
import { fixturePath } from '../support/fixtures.ts';

const run = <T>(body: () => T): T => noGrad(body);
const kTolerance = 1e-5;

function expectNear(found: Float32Array | undefined, wanted: Float32Array | undefined): void {
  expect(found?.length).toBe(wanted?.length);
  wanted?.forEach((value, i) => {
    expect(Math.abs((found?.[i] as number) - value), `[${i}]`).toBeLessThan(kTolerance);
  });
}

describe.each(['llama-untied-gqa', 't5', 'llama-dynamic-rope'])('UncachedSession of %s', (name) => {
  let model: CausalLM | Seq2SeqLM;
  beforeAll(async () => {
    const folder = fixturePath(`architectures/${name}/model`);
    model =
      name === 't5'
        ? await AutoModelForSeq2SeqLM.fromPretrained(folder)
        : await AutoModelForCausalLM.fromPretrained(folder);
  });
  afterAll(() => model.dispose());

  it('gives each sequence the logits that it has alone, also after steps of others', async () => {
    const prompts = [Int32Array.of(5, 6, 7), Int32Array.from({ length: 15 }, (_, i) => i + 20)];
    const together = new UncachedSession(model, { run });
    const [a, b] = (await together.prefill(prompts)).map(({ sequence }) => sequence) as [
      number,
      number,
    ];
    await together.step([b], [9]);
    const [afterB, afterA] = await together.step([b, a], [10, 11]);
    const alone = async (prompt: Int32Array, tokens: number[]) => {
      const session = new UncachedSession(model, { run });
      const [first] = await session.prefill([prompt]);
      let [row] = [first?.logits];
      for (const token of tokens) [row] = await session.step([first?.sequence as number], [token]);
      return row;
    };
    expectNear(afterA, await alone(prompts[0] as Int32Array, [11]));
    expectNear(afterB, await alone(prompts[1] as Int32Array, [9, 10]));
    together.dispose();
  });

  it('lets forks go their own ways', async () => {
    const session = new UncachedSession(model, { run });
    const [first] = await session.prefill([Int32Array.of(5, 6)]);
    const number = first?.sequence as number;
    const [copy] = session.fork(number, 1) as [number];
    const [x, y] = await session.step([number, copy], [7, 8]);
    expect(x).not.toEqual(y);
    session.release(number);
    const [again] = await session.step(session.fork(copy, 1), [9]);
    const [same] = await session.step([copy], [9]);
    expectNear(again, same);
    session.dispose();
  });
});

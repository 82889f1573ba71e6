// A sequence that generations continue: in every family of models the tokens of a fresh generation, whatever of the cache is kept.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { ContinuedSession } from '../../lib/generate/continued_session.ts';
import { generate, generateWith } from '../../lib/generate/generate.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { architecture } from '../support/golden_checkpoints.ts';

const kGolden = JSON.parse(
  readFileSync(fileURLToPath(new URL('../fixtures/generation/tiny.json', import.meta.url)), 'utf8'),
) as Record<string, { task: string }>;
// Keys of a dynamic rotary embedding keep the rotation of the length at which they were computed.
const kNames = Object.entries(kGolden)
  .filter(([name, { task }]) => task === 'causal_lm' && !/\/|dynamic/.test(name))
  .map(([name]) => name);

const kOptions = { maxNewTokens: 6, eosTokenIds: [] };

/** The tokens of a generation on the kept sequence, and how many of the prompt's were kept. */
async function next(model: CausalLM, kept: ContinuedSession, ids: number[]) {
  const [result] = await generateWith(kept.open, model, { ids, ...kOptions }).result;
  const [expected] = await generate(model, { ids, ...kOptions }).result;
  expect(result?.tokens).toEqual(expected?.tokens);
  expect(result?.promptTokens).toBe(ids.length);
  return { tokens: [...(result?.tokens ?? [])], cached: result?.cachedTokens };
}

describe('a continued sequence', () => {
  it.each(kNames)('of %s gives what a new one gives', async (name) => {
    using model = await AutoModelForCausalLM.fromPretrained(join(architecture(name), 'model'), {
      dtype: 'f32',
    });
    const kept = new ContinuedSession(model);
    const prompt = Array.from({ length: 20 }, (_, i) => (i * 7 + 3) % 40);
    const first = await next(model, kept, prompt);
    expect(first.cached).toBe(0);
    const longer = [...prompt, ...first.tokens, 5, 9, 11];
    const second = await next(model, kept, longer);
    expect(second.cached).toBe(prompt.length + first.tokens.length - 1);
    // One that is the same, and one that leaves it in the middle.
    expect((await next(model, kept, longer)).cached).toBeLessThanOrEqual(longer.length - 1);
    const other = [...longer.slice(0, 12), 1, 2, 3];
    expect((await next(model, kept, other)).cached).toBeLessThanOrEqual(12);
    expect(kept.length).toBe(other.length + kOptions.maxNewTokens - 1);
    expect((await next(model, kept, [39, 38])).cached).toBe(0);
    kept.reset();
    expect([kept.length, kept.bytes]).toEqual([0, 0]);
    expect((await next(model, kept, [39, 38])).cached).toBe(0);
    kept.reset();
  });

  it.each(['llama-tied', 'gemma2', 'qwen3'])(
    'of %s goes on from where it was, whenever a generation on it is aborted',
    async (name) => {
      using model = await AutoModelForCausalLM.fromPretrained(join(architecture(name), 'model'), {
        dtype: 'f32',
      });
      const kept = new ContinuedSession(model);
      const prompt = Array.from({ length: 20 }, (_, i) => (i * 7 + 3) % 40);
      const first = await next(model, kept, prompt);
      const longer = [...prompt, ...first.tokens, ...prompt];
      let hasKept = 0;
      for (let turns = 0; turns < 60; turns += 3) {
        const stop = new AbortController();
        const options = { ids: [...longer, turns % 40], ...kOptions, signal: stop.signal };
        const ending = generateWith(kept.open, model, options).result;
        for (let turn = 0; turn < turns; turn++) await null;
        if (turns > 40) await new Promise((resolve) => setTimeout(resolve, (turns - 40) / 10));
        stop.abort();
        await ending;
        if (kept.length > 0) hasKept++;
        await next(model, kept, [...longer, (turns + 1) % 40, 3]);
      }
      expect(hasKept).toBeGreaterThan(0);
      kept.reset();
    },
  );

  it('is one at a time', async () => {
    using model = await AutoModelForCausalLM.fromPretrained(
      join(architecture('llama-tied'), 'model'),
    );
    const kept = new ContinuedSession(model);
    const options = { ...kOptions, numReturnSequences: 2 };
    await expect(
      generateWith(kept.open, model, { ids: [1, 2], ...options }).result,
    ).rejects.toThrow('by one sequence at a time');
    await expect(
      generateWith(kept.open, model, { ids: [[1], [2]], ...kOptions }).result,
    ).rejects.toThrow('by one sequence at a time');
    kept.reset();
  });
});

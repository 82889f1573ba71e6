// Steps of decoding that a session records and repeats: the same bits as op by op, whatever changes between the steps. While
// profiling, a session runs op by op, which is what the others are compared with.
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import { type CachedSession, openCachedSession } from '../../lib/generate/cached_session.ts';
import { adapterRun } from '../../lib/generate/generate.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { copy_, mul } from '../../lib/ops/index.ts';
import { resetOpTimes, setProfiling, synchronize } from '../../lib/runtime.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { architecture } from '../support/golden_checkpoints.ts';
import { callsOf } from '../support/run_numbers.ts';
import { disturb } from '../support/tiny_adapters.ts';

const kDTypes = ['f32', 'bf16'] as const;

const load = (name: string, dtype: 'f32' | 'bf16'): Promise<CausalLM> =>
  AutoModelForCausalLM.fromPretrained(join(architecture(name), 'model'), { dtype });

/** Runs `body` recorded and op by op, compares the logits that it returns, and returns how often a graph ran. */
async function graphRuns(body: () => Promise<readonly Float32Array[]>): Promise<number> {
  resetOpTimes();
  const recorded = await body();
  await synchronize();
  const runs = callsOf('graph');
  const before = setProfiling(true);
  try {
    resetOpTimes();
    const plain = await body();
    await synchronize();
    expect(callsOf('graph')).toBe(0);
    expect(recorded).toEqual(plain);
  } finally {
    setProfiling(before);
  }
  return runs;
}

/** Steps of one sequence; `between` is called before each. */
async function steps(
  session: CachedSession,
  count: number,
  between: (step: number) => unknown = () => {},
): Promise<Float32Array[]> {
  const rows: Float32Array[] = [];
  const [started] = await session.prefill([Int32Array.of(3, 1, 4, 1, 5)]);
  const sequence = started?.sequence as number;
  for (let i = 0; i < count; i++) {
    await between(i);
    rows.push(...(await session.step([sequence], [(7 * i) % 50])));
  }
  session.dispose();
  return rows;
}

const kLora: LoraConfigInput = { r: 4, loraAlpha: 8, targetModules: 'all-linear' };

describe('recorded steps have the bits of the same ops one by one', () => {
  it.each(
    kDTypes.flatMap((dtype) =>
      ['gpt2', 'mistral', 'gemma2', 'qwen3'].map((name) => [name, dtype] as const),
    ),
  )(
    '%s in %s, past the end of a window, of a block and of the tables of positions',
    async (name, dtype) => {
      using model = await load(name, dtype);
      const length = Math.min(140, model.contextLength - 10);
      const open = () => openCachedSession(model, { run: noGrad, maxLength: 200 });
      const runs = await graphRuns(() => steps(open(), length));
      expect(runs).toBeGreaterThan(length - 8);
    },
  );

  it('of sequences that begin and end at different steps, and that go on from a common prompt', async () => {
    using model = await load('llama-untied-gqa', 'f32');
    const runs = await graphRuns(async () => {
      const session = openCachedSession(model, { run: noGrad, maxLength: 100 });
      const prompts = [Int32Array.of(1, 2), Int32Array.of(9, 8, 7), Int32Array.of(1, 2)];
      let live = (await session.prefill(prompts)).map(({ sequence }) => sequence);
      const rows: Float32Array[] = [];
      for (let i = 0; i < 30; i++) {
        if (i === 10) session.release(live.shift() as number);
        if (i === 15) live = [...live, ...session.fork(live[0] as number, 2)];
        if (i === 20)
          rows.push(...(await session.extend([{ sequence: live[0] as number, ids: [1, 2, 3] }])));
        if (i === 25) live.reverse();
        rows.push(
          ...(await session.step(
            live,
            live.map((_, n) => (i + 3 * n) % 50),
          )),
        );
      }
      session.dispose();
      return rows;
    });
    expect(runs).toBeGreaterThan(20);
  });
});

describe('recorded steps follow what happens to the model', () => {
  it.each(kDTypes)('the values of an adapter change, in %s', async (dtype) => {
    using model = await load('llama-untied-gqa', dtype);
    const tuned = await AdapterModel.create(model, { ...kLora, initLoraWeights: 'pissa' });
    const run = adapterRun(tuned, undefined);
    const runs = await graphRuns(() => {
      disturb(tuned, 5);
      const session = openCachedSession(model, { run, maxLength: 100 });
      return steps(session, 12, (i) => i % 4 === 3 && disturb(tuned, i));
    });
    expect(runs).toBeGreaterThan(8);
    tuned.dispose();
  });

  it('an adapter is switched off and on, and another one becomes active', async () => {
    using model = await load('llama-untied-gqa', 'f32');
    const tuned = await AdapterModel.create(model, kLora);
    disturb(tuned, 1);
    await tuned.addAdapter('other', { ...kLora, r: 2 });
    tuned.setAdapter('other');
    disturb(tuned, 2);
    const run = adapterRun(tuned, undefined);
    const all: Float32Array[] = [];
    await graphRuns(async () => {
      tuned.setAdapter('default');
      const session = openCachedSession(model, { run, maxLength: 100 });
      const rows = await steps(session, 20, (i) => {
        if (i === 5) tuned.setAdapter('other');
        if (i === 10) tuned.enabled = false;
        if (i === 15) tuned.enabled = true;
      });
      all.push(...rows);
      return rows;
    });
    expect(all[4]).not.toEqual(all[9]);
    tuned.dispose();
  });

  it('a weight of the base is replaced, or written', async () => {
    const names: string[] = [];
    await graphRuns(async () => {
      using model = await load('llama-untied-gqa', 'f32');
      const session = openCachedSession(model, { run: noGrad, maxLength: 100 });
      return await steps(session, 12, (i) => {
        const [name, weight] = [...model.namedParameters()].at(-2) as [
          string,
          (typeof model.head)['weight'],
        ];
        names.push(name);
        if (i === 4)
          model.replaceParameter(
            weight,
            noGrad(() => mul(weight, 1.5)),
          );
        if (i === 8) scope(() => noGrad(() => void copy_(weight, mul(weight, 0.5))));
      });
    });
    expect(new Set(names).size).toBe(1);
  });

  it('the norms of DoRA, which are made anew when A and B have other values', async () => {
    using model = await load('llama-untied-gqa', 'f32');
    const tuned = await AdapterModel.create(model, { ...kLora, useDora: true });
    const run = adapterRun(tuned, undefined);
    const runs = await graphRuns(() => {
      disturb(tuned, 5);
      const session = openCachedSession(model, { run, maxLength: 100 });
      return steps(session, 12, (i) => i === 6 && disturb(tuned, i));
    });
    expect(runs).toBeGreaterThan(6);
    tuned.dispose();
  });
});

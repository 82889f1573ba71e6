// Runs that version 0.2.0 began: they continue from its checkpoints, which test/fixtures/checkpoints/0.2.0 keeps as it wrote them, with
// the numbers that it had computed for the other steps. Sums may have another order since, so the numbers are the same up to rounding.
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import { AutoModelForCausalLM, type Model } from '../../lib/models/index.ts';
import { parseState } from '../../lib/train/checkpoint_state.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import { fixturePath } from '../support/fixtures.ts';
import { tinyClassifier, tinyLabelled } from '../support/tiny_classifier.ts';
import { tinyBatches, tinySource } from '../support/tiny_model.ts';

const kRuns = fixturePath('checkpoints/0.2.0');
const kRecords: Record<string, Record<string, number>[]> = JSON.parse(
  readFileSync(join(kRuns, 'records.json'), 'utf8'),
);
const kStepsBefore = 2;

const load = () =>
  AutoModelForCausalLM.fromPretrained(fixturePath('architectures/llama-untied-gqa/model'));
const rows = () => tinySource(tinyBatches({ count: 4, rows: 12, vocabulary: 96 }));

interface Begun {
  readonly tuned: () => Promise<TunedModel<Model>>;
  readonly data: () => unknown;
  readonly options: Partial<TrainerOptions>;
}

const kBegun: Readonly<Record<string, Begun>> = {
  balora: {
    tuned: async () =>
      AdapterModel.create(await load(), {
        ...{ r: 2, targetModules: ['q_proj'], initLoraWeights: 'pissa' },
      }),
    data: rows,
    options: {
      regularizers: {
        ...{ consistencyWeight: 0.3, diversityWeight: 0.05, svdWeight: 0.05 },
        ...{ svdTopK: 3, entropyTopK: 5 },
      },
    },
  },
  adalora: {
    tuned: async () =>
      AdapterModel.create(await load(), {
        ...{ method: 'adalora', targetModules: ['q_proj', 'v_proj'], initR: 3, targetR: 2 },
        ...{ totalStep: 4, tinit: 1, tfinal: 1, deltaT: 1 },
      }),
    data: rows,
    options: {},
  },
  classifier: {
    tuned: async () =>
      AdapterModel.create(await tinyClassifier({ numLabels: 3, seed: 1 }), {
        ...{ r: 2, targetModules: ['query'] },
      }),
    data: () => tinyLabelled(16, { batchSize: 4 }),
    options: { regularizers: { consistencyWeight: 0.3, svdTopK: 2 } },
  },
};

const folder = mkdtempSync(join(tmpdir(), 'balora-earlier-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it.each(Object.entries(kBegun))('continue: %s', async (name, { tuned, data, options }) => {
  const output = join(folder, name);
  cpSync(join(kRuns, name), output, { recursive: true });
  const trainer = new Trainer({
    ...{ tuned: await tuned(), data: await data(), learningRate: 0.01 },
    ...{ gradientAccumulationSteps: 2, maxSteps: 4, output, resume: true, ...options },
  } as never as TrainerOptions);
  const found: Record<string, unknown>[] = [];
  for await (const event of trainer.run()) {
    expect(event.type).not.toBe('warning');
    if (event.type === 'step') found.push({ ...event.record });
  }
  expect(found).toHaveLength(kRecords[name]?.length as number);
  for (const [i, expected] of (kRecords[name] ?? []).entries()) {
    for (const key of ['step', 'loss', 'taskLoss', 'gradNorm', 'learningRate', 'supervisedTokens'])
      expect(found[i]?.[key]).toBeCloseTo(expected[key] as number, 5);
  }
  const lines = readFileSync(join(output, 'run/metrics.jsonl'), 'utf8').trim().split('\n');
  expect(lines.map((line) => JSON.parse(line).step)).toEqual(
    Array.from({ length: kStepsBefore + found.length }, (_, i) => i + 1),
  );
});

it('have the terms of their last step in the map that records have now', () => {
  const path = join(kRuns, 'balora/run/checkpoints/step-2/state.json');
  const before = JSON.parse(readFileSync(path, 'utf8'));
  const { last } = parseState(JSON.stringify(before), path);
  const { consistency, diversity, svd, consistencyWeight, diversityWeight, svdWeight, ...rest } =
    before.last;
  const terms = {
    consistency: { value: consistency, weight: consistencyWeight },
    diversity: { value: diversity, weight: diversityWeight },
    svd: { value: svd, weight: svdWeight },
  };
  expect(last).toEqual({ ...rest, terms });
  // The record of a run without them, with a term of the caller's own, and one of today, which stays as it is.
  const off = { consistency: null, diversity: null, svd: null };
  const weights = { consistencyWeight: 0, diversityWeight: 0, svdWeight: 0 };
  const own = { mine: { value: 3, weight: 0.5 } };
  for (const given of [
    { ...rest, ...off, ...weights, terms: own },
    { ...rest, terms: own },
  ]) {
    const found = parseState(JSON.stringify({ ...before, last: given }), path);
    expect(found.last).toEqual({ ...rest, terms: own });
  }
});

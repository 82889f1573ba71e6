// Packed and padded batches of the same examples give the same terms and gradients of a step, through attention.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { Batches, type BatchOptions } from '../../lib/data/batches.ts';
import type { Batch } from '../../lib/data/collate.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import type { Positions } from '../../lib/data/select_rows.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { causalLm } from '../../lib/tasks/causal_lm.ts';
import type { RegularizerOptions } from '../../lib/train/regularizers.ts';
import { WindowReader } from '../../lib/train/window.ts';
import { accumulator } from '../support/accumulate.ts';
import { relativeError } from '../support/fixtures.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinySource } from '../support/tiny_model.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

const kRounding = 2e-5;
const kRows = Array.from({ length: 7 }, (_, i) => ({
  prompt: `What is ${'b'.repeat(i)}?`,
  response: `It is ${'ab '.repeat(1 + ((3 * i) % 5))}.`,
}));

let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-packing-'));
  await writeTinyCheckpoint(folder);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** All rows as one micro-batch. */
async function oneBatch(options: BatchOptions): Promise<Batch> {
  const batches = await Batches.create(arrayRows(kRows), tinyTokenizer(), {
    ...{ promptTemplate: '{prompt}', promptField: 'prompt', responseField: 'response' },
    ...{ batchSize: kRows.length, maxLength: 96, shuffle: false, ...options },
  });
  expect(batches.batchCount(0)).toBe(1);
  for await (const batch of batches.batches(0)) return batch;
  throw new Error('no batch');
}

/** The terms and gradients of one step, with B not 0 so that the student differs from its teacher. */
async function step(batch: Batch, positions: Positions) {
  const model = await AutoModelForCausalLM.fromPretrained(folder, { dtype: 'f32' });
  const tuned = await AdapterModel.create(model, {
    ...{ r: 3, loraAlpha: 24, initLoraWeights: false, targetModules: 'all-linear' },
  });
  const regularizers: RegularizerOptions = {
    ...{ consistencyWeight: 0.5, diversityWeight: 0.2, svdWeight: 0.2, svdTopK: 4, positions },
    consistencySchedule: 'constant',
    regularizerSchedule: 'constant',
  };
  const reader = new WindowReader(
    tinySource([batch]),
    { accumulation: 1, select: (one) => causalLm.select(one, { positions }) },
    { epoch: 0, microBatch: 0 },
  );
  const objective = accumulator(tuned, regularizers);
  const terms = await objective.accumulate(await reader.next(), 10);
  tuned.collectGradients();
  const gradients: Record<string, Float32Array> = {};
  for (const { name, tensor } of tuned.parameters()) {
    gradients[name] = (await tensor.grad?.data()) as Float32Array;
  }
  objective.dispose();
  tuned.dispose();
  model.dispose();
  return { terms, gradients };
}

it.each(['supervised', 'non_padding'] as const)(
  'packed and padded rows give the same terms and gradients (%s)',
  async (positions) => {
    const packed = await oneBatch({ packing: true });
    const padded = await oneBatch({ padding: 'longest' });
    expect(packed.lengths).toBeUndefined();
    expect(padded.inputIds.length).toBeGreaterThan(packed.inputIds.length + kRows.length);
    const [a, b] = [await step(packed, positions), await step(padded, positions)];
    for (const term of ['loss', 'taskLoss', 'consistency', 'diversity', 'svd'] as const) {
      const value = a.terms[term] as number;
      expect(Math.abs(value), term).toBeGreaterThan(0.01);
      expect(Math.abs((b.terms[term] as number) - value), term).toBeLessThan(
        kRounding * Math.abs(value),
      );
    }
    expect(Object.keys(a.gradients).length).toBe(28);
    for (const [name, gradient] of Object.entries(a.gradients)) {
      expect(Math.max(...gradient.map(Math.abs)), name).toBeGreaterThan(0);
      expect(relativeError(b.gradients[name] as Float32Array, gradient), name).toBeLessThan(
        kRounding,
      );
    }
  },
);

/** PEFT adapters on the tiny llama checkpoints: logits, loss, gradients, merged weights, and what is written back. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { linear } from '../../lib/ops/index.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { resolveRegularizers } from '../../lib/train/methods.ts';
import { makeObjective } from '../../lib/train/objective.ts';
import { type GoldenArray, goldenArray, goldenArrays } from '../support/golden.ts';
import { goldenBatch, type PaddedBatch, windowOf } from '../support/golden_batch.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

interface AdapterFacts {
  loss: number;
  num_adapted_modules: number;
  tolerance: { logits_abs: number; loss_abs: number; grad_abs_over_max_abs: number };
  merged_dir?: string;
}

const kRoot = 'golden/architectures';
/** Refused by name (test/adapters/config.test.ts). */
const kNotYet = new Set(['adapter-dora', 'adapter-lora-bias']);

const folder = mkdtempSync(join(tmpdir(), 'balora-golden-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describeShared('PEFT adapters on llama checkpoints', () => {
  const families = readdirSync(sharedPath(kRoot)).filter(
    (name) => name.startsWith('llama') && name !== 'llama-seqcls',
  );
  describe.each(families)('%s', (family) => {
    const path = (name: string): string => sharedPath(`${kRoot}/${family}/${name}`);
    const facts = JSON.parse(readFileSync(path('expected.json'), 'utf8')) as {
      adapters: Record<string, AdapterFacts>;
    };
    const padded = goldenBatch(goldenArrays(path('inputs.safetensors')), {
      ids: 'input_ids',
      mask: 'attention_mask',
      labels: 'labels',
    });
    const adapters = Object.entries(facts.adapters).filter(([name]) => !kNotYet.has(name));

    it.each(adapters)('%s: logits, loss and gradients', async (name, fact) => {
      const model = await AutoModelForCausalLM.fromPretrained(path('model'), { dtype: 'f32' });
      const tuned = await AdapterModel.load(model, path(name));
      expect(tuned.modules).toHaveLength(fact.num_adapted_modules);
      const expected = goldenArrays(path(`expected-${name}.safetensors`));
      compareLogits(tuned, padded, goldenArray(expected, 'logits'), fact.tolerance.logits_abs);

      const objective = makeObjective(tuned, resolveRegularizers({}));
      const window = windowOf(padded.batch);
      const terms = await objective.accumulate({ tuned, window, step: 0, totalSteps: 1 });
      expect(Math.abs((terms?.taskLoss as number) - fact.loss)).toBeLessThanOrEqual(
        fact.tolerance.loss_abs,
      );
      const found = new Map(tuned.parameters().map(({ name: key, tensor }) => [key, tensor.grad]));
      let compared = 0;
      for (const [key, { data }] of expected) {
        const match = /^grad\.base_model\.model\.(.*)\.weight$/.exec(key);
        if (match === null) continue;
        compared++;
        const grad = found.get(match[1] as string)?.dataSync() as Float32Array;
        let [largest, worst] = [0, 0];
        grad.forEach((value, i) => {
          largest = Math.max(largest, Math.abs(Number(data[i])));
          worst = Math.max(worst, Math.abs(value - Number(data[i])));
        });
        expect(worst, key).toBeLessThanOrEqual(fact.tolerance.grad_abs_over_max_abs * largest);
      }
      expect(compared).toBeGreaterThan(0);
      tuned.dispose();
      model.dispose();
    });

    it.each(adapters)('%s: written and read again, the same tensors', async (name) => {
      const model = await AutoModelForCausalLM.fromPretrained(path('model'), { dtype: 'f32' });
      const tuned = await AdapterModel.load(model, path(name));
      const out = join(folder, `${family}-${name}`);
      await tuned.save(out);
      const before = goldenArrays(join(path(name), 'adapter_model.safetensors'));
      const after = goldenArrays(join(out, 'adapter_model.safetensors'));
      expect([...after.keys()].sort()).toEqual([...before.keys()].sort());
      for (const [key, array] of before) expect(after.get(key), key).toEqual(array);
      const config = (folderPath: string) =>
        JSON.parse(readFileSync(join(folderPath, 'adapter_config.json'), 'utf8')) as Record<
          string,
          unknown
        >;
      const sorted = (value: unknown) => (Array.isArray(value) ? [...value].sort() : value);
      const [was, is] = [config(path(name)), config(out)];
      for (const key of Object.keys(was)) expect(sorted(is[key]), key).toEqual(sorted(was[key]));
      tuned.dispose();
      model.dispose();
    });

    it.each(adapters.filter(([, { merged_dir }]) => merged_dir !== undefined))(
      '%s merged',
      async (name, fact) => {
        const model = await AutoModelForCausalLM.fromPretrained(path('model'), { dtype: 'f32' });
        const tuned = await AdapterModel.load(model, path(name));
        const out = join(folder, `${family}-${name}-merged`);
        const error = await saveMerged(tuned, out);
        expect(error.maxAbsError).toBeLessThan(1e-6);
        const expected = goldenArrays(join(path(fact.merged_dir as string), 'model.safetensors'));
        const found = goldenArrays(join(out, 'model.safetensors'));
        expect([...found.keys()].sort()).toEqual([...expected.keys()].sort());
        for (const [key, { data }] of expected) {
          const mine = goldenArray(found, key).data as Float32Array;
          mine.forEach((value, i) => {
            expect(Math.abs(value - Number(data[i])), `${key}[${i}]`).toBeLessThanOrEqual(
              2e-6 * Math.max(1, Math.abs(value)),
            );
          });
        }
        tuned.dispose();
        model.dispose();
      },
    );
  });
});

function compareLogits(
  { model }: AdapterModel,
  { batch, real }: PaddedBatch,
  expected: GoldenArray,
  tolerance: number,
): void {
  const logits = scope(() => noGrad(() => linear(model.forward(batch), model.head.weight)));
  const vocabulary = logits.shape.at(-1) as number;
  const found = logits.dataSync() as Float32Array;
  logits.dispose();
  let worst = 0;
  for (const row of real) {
    for (let v = 0; v < vocabulary; v++) {
      const at = row * vocabulary + v;
      worst = Math.max(worst, Math.abs((found[at] as number) - Number(expected.data[at])));
    }
  }
  expect(worst).toBeLessThanOrEqual(tolerance);
}

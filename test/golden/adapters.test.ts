/** PEFT adapters on tiny checkpoints, every variant: logits, loss, gradients, merged weights, and what is written back. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { resolveRegularizers } from '../../lib/train/methods.ts';
import { makeObjective } from '../../lib/train/objective.ts';
import { fixturePath } from '../support/fixtures.ts';
import { type GoldenArray, goldenArray, goldenArrays } from '../support/golden.ts';
import { goldenBatch, type PaddedBatch, windowOf } from '../support/golden_batch.ts';

interface AdapterFacts {
  loss: number;
  num_adapted_modules: number;
  tolerance: { logits_abs: number; loss_abs: number; grad_abs_over_max_abs: number };
  merged_dir?: string;
  merged_max_abs_logits_minus_adapter: number;
  merge_refused?: string;
}

const folder = mkdtempSync(join(tmpdir(), 'balora-golden-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const families = readdirSync(fixturePath('architectures')).filter((name) => {
  const path = fixturePath(`architectures/${name}`);
  if (!existsSync(join(path, 'expected.json'))) return false;
  const { task } = JSON.parse(readFileSync(join(path, 'expected.json'), 'utf8')) as {
    task: string;
  };
  return task === 'causal_lm' && existsSync(join(path, 'adapter'));
});

describe.each(families)('PEFT adapters on %s', (family) => {
  const path = (name: string): string => fixturePath(`architectures/${family}/${name}`);
  const facts = JSON.parse(readFileSync(path('expected.json'), 'utf8')) as {
    adapters: Record<string, AdapterFacts>;
  };
  const padded = goldenBatch(goldenArrays(path('inputs.safetensors')), {
    ids: 'input_ids',
    mask: 'attention_mask',
    labels: 'labels',
  });
  const adapters = Object.entries(facts.adapters);
  const load = async (name: string): Promise<AdapterModel> =>
    AdapterModel.load(
      await AutoModelForCausalLM.fromPretrained(path('model'), { dtype: 'f32' }),
      path(name),
    );

  it.each(adapters)('%s: logits, loss and gradients', async (name, fact) => {
    const tuned = await load(name);
    expect(tuned.modules).toHaveLength(fact.num_adapted_modules);
    const expected = goldenArrays(path(`expected-${name}.safetensors`));
    const logits = goldenArray(expected, 'logits');
    expect(logitError(tuned.model, padded, logits)).toBeLessThanOrEqual(fact.tolerance.logits_abs);

    const objective = makeObjective(tuned, resolveRegularizers({}));
    const window = windowOf(padded.batch);
    const terms = await objective.accumulate({ tuned, window, step: 0, totalSteps: 1 });
    expect(Math.abs((terms?.taskLoss as number) - fact.loss)).toBeLessThanOrEqual(
      fact.tolerance.loss_abs,
    );
    const found = new Map(tuned.parameters().map(({ name: key, tensor }) => [key, tensor.grad]));
    let compared = 0;
    for (const [key, { data }] of expected) {
      const match = /^grad\.base_model\.model\.(.*?)(\.weight)?$/.exec(key);
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
    tuned.model.dispose();
  });

  it.each(adapters)('%s: written and read again, the same tensors', async (name) => {
    const tuned = await load(name);
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
    // PEFT writes targets in the order of a set, which is none.
    const { target_modules: _, ...was } = config(path(name));
    const { target_modules: __, ...is } = config(out);
    expect(is).toEqual(was);
    expect([config(out).target_modules].flat().sort()).toEqual(
      [config(path(name)).target_modules].flat().sort(),
    );
    tuned.dispose();
    tuned.model.dispose();
  });

  it.each(adapters)('%s merged', async (name, fact) => {
    const tuned = await load(name);
    const out = join(folder, `${family}-${name}-merged`);
    if (fact.merge_refused !== undefined) {
      await expect(saveMerged(tuned, out)).rejects.toThrow(/loraBias .* layer without a bias/);
      expect(existsSync(out)).toBe(false);
      return;
    }
    const error = await saveMerged(tuned, out);
    expect(error.maxAbsError).toBeLessThan(1e-6);
    tuned.dispose();
    tuned.model.dispose();
    const merged = await AutoModelForCausalLM.fromPretrained(out, { dtype: 'f32' });
    const logits = goldenArray(goldenArrays(path(`expected-${name}.safetensors`)), 'logits');
    expect(logitError(merged, padded, logits)).toBeLessThanOrEqual(
      fact.tolerance.logits_abs + fact.merged_max_abs_logits_minus_adapter,
    );
    merged.dispose();
    if (fact.merged_dir === undefined) return;
    const expected = goldenArrays(join(path(fact.merged_dir), 'model.safetensors'));
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
  });
});

/** Largest |logit - expected| over the real rows. */
function logitError(model: CausalLM, { batch, real }: PaddedBatch, expected: GoldenArray): number {
  const logits = scope(() => noGrad(() => model.logits(model.forward(batch))));
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
  return worst;
}

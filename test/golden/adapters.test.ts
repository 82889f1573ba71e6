/** PEFT adapters of every variant on tiny checkpoints: logits, loss, gradients, merged weights, and the adapter written again. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { accumulator } from '../support/accumulate.ts';
import { fixturePath, relativeError } from '../support/fixtures.ts';
import { type GoldenArray, goldenArray, goldenArrays } from '../support/golden.ts';
import { goldenBatch, windowOf } from '../support/golden_batch.ts';
import { kBf16Band, meanNormError, normError, roundToBf16 } from '../support/golden_checkpoints.ts';
import { logitError, realRows } from '../support/golden_logits.ts';

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
    AdapterModel.fromPretrained(
      await AutoModelForCausalLM.fromPretrained(path('model'), { dtype: 'f32' }),
      path(name),
    );
  /** The gradients after a window, with the golden ones. */
  const gradients = (tuned: AdapterModel, expected: Map<string, GoldenArray>) => {
    const found = new Map(tuned.parameters().map(({ name: key, tensor }) => [key, tensor.grad]));
    return [...expected].flatMap(([key, { data }]) => {
      const match = /^grad\.base_model\.model\.(.*?)(\.weight)?$/.exec(key);
      if (match === null) return [];
      const grad = found.get(match[1] as string)?.dataSync() as Float32Array;
      return [{ key, grad, golden: Float64Array.from(data as Float64Array, Number) }];
    });
  };

  it.each(adapters)('%s: logits, loss and gradients', async (name, fact) => {
    const tuned = await load(name);
    expect(tuned.modules).toHaveLength(fact.num_adapted_modules);
    const expected = goldenArrays(path(`expected-${name}.safetensors`));
    const logits = goldenArray(expected, 'logits');
    expect(logitError(tuned.model, padded, logits)).toBeLessThanOrEqual(fact.tolerance.logits_abs);

    const objective = accumulator(tuned);
    const window = windowOf(padded.batch);
    const terms = await objective.accumulate(window);
    expect(Math.abs((terms?.taskLoss as number) - fact.loss)).toBeLessThanOrEqual(
      fact.tolerance.loss_abs,
    );
    const compared = gradients(tuned, expected);
    for (const { key, grad, golden } of compared) {
      expect(relativeError(grad, golden), key).toBeLessThanOrEqual(
        fact.tolerance.grad_abs_over_max_abs,
      );
    }
    expect(compared.length).toBeGreaterThan(0);
    tuned.dispose();
    tuned.model.dispose();
  });

  // The bounds are those of tiny models. An adapter has few gradients, and those of q and k are small differences of large numbers.
  // For gradients the bound is therefore at least three times the error that rounding only the weights causes, since a layer rounds
  // activations two or three times as often as weights. Measured: .8 to 2.4 times.
  it.each(adapters)('%s: logits and gradients in bf16', async (name) => {
    const expected = goldenArrays(path(`expected-${name}.safetensors`));
    const errors = async (dtype: 'f32' | 'bf16') => {
      const model = await AutoModelForCausalLM.fromPretrained(path('model'), {
        dtype,
        trainable: true,
      });
      roundToBf16(model);
      const tuned = await AdapterModel.fromPretrained(model, path(name));
      const logits = normError(...realRows(model, padded, goldenArray(expected, 'logits')));
      const objective = accumulator(tuned);
      const window = windowOf(padded.batch);
      await objective.accumulate(window);
      const compared = gradients(tuned, expected);
      tuned.dispose();
      model.dispose();
      return { logits, gradients: meanNormError(compared.map((g) => [g.grad, g.golden] as const)) };
    };
    const [bf16, rounded] = [await errors('bf16'), await errors('f32')];
    expect(bf16.logits).toBeLessThan(kBf16Band.logits);
    expect(bf16.gradients).toBeLessThan(Math.max(kBf16Band.gradients, 3 * rounded.gradients));
  });

  it.each(adapters)('%s: the same tensors after writing and reading', async (name) => {
    const tuned = await load(name);
    const out = join(folder, `${family}-${name}`);
    await tuned.savePretrained(out);
    const before = goldenArrays(join(path(name), 'adapter_model.safetensors'));
    const after = goldenArrays(join(out, 'adapter_model.safetensors'));
    expect([...after.keys()].sort()).toEqual([...before.keys()].sort());
    for (const [key, array] of before) expect(after.get(key), key).toEqual(array);
    const config = (folderPath: string) =>
      JSON.parse(readFileSync(join(folderPath, 'adapter_config.json'), 'utf8')) as Record<
        string,
        unknown
      >;
    // PEFT writes the targets in the order of a Python set, which is arbitrary.
    const { target_modules: _, ...was } = config(path(name));
    const { target_modules: __, ...is } = config(out);
    expect(is).toEqual(was);
    expect([config(out).target_modules].flat().sort()).toEqual(
      [config(path(name)).target_modules].flat().sort(),
    );
    tuned.dispose();
    tuned.model.dispose();
  });

  it.each(adapters)('%s: merged weights and their logits', async (name, fact) => {
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

/**
 * Adapters without a pair A, B against PEFT's numbers, or those of the authors' formula in float64 (LoRA-XS): logits, loss, gradients, five
 * steps of AdamW, merged weights, the folder written again, and the export as a plain LoRA.
 */
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { stateName } from '../../lib/adapters/adapted_linear.ts';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { formatAdapterConfig, loraConfig } from '../../lib/adapters/config.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { AdamW } from '../../lib/optim/index.ts';
import { accumulator } from '../support/accumulate.ts';
import { fixturePath, readJson, relativeError } from '../support/fixtures.ts';
import { type GoldenArray, goldenArray, goldenArrays } from '../support/golden.ts';
import { goldenBatch, windowOf } from '../support/golden_batch.ts';
import { kBf16Band, normError } from '../support/golden_checkpoints.ts';
import { logitError, realRows } from '../support/golden_logits.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

interface Facts {
  loss: number;
  tolerance: {
    logits_abs: number;
    loss_abs: number;
    grad_abs_over_max_abs: number;
    adamw_losses_abs: number;
    adamw_values_abs: number;
  };
  adamw: { lr: number; losses_before_each_step_and_at_the_end_f64: number[] };
  lora_export?: { rank: number };
}

const kFamily = 'architectures/llama-untied-gqa';
const kGolden = 'golden/methods/variants';
const kNames = [
  ...['vera', 'lora_xs', 'miss', 'miss_r6', 'miss_bat', 'miss_mini', 'hra', 'hra_gs'],
  ...['peanut', 'peanut_depth1', 'hira', 'randlora', 'randlora_sparse', 'randlora_very_sparse'],
];

const out = mkdtempSync(join(tmpdir(), 'balora-variants-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));

const padded = goldenBatch(goldenArrays(fixturePath(`${kFamily}/inputs.safetensors`)), {
  ids: 'input_ids',
  mask: 'attention_mask',
  labels: 'labels',
});

describeShared('methods with tensors of their own', [kGolden], () => {
  it('a VeRA folder without its projections is refused with the fix', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(fixturePath(`${kFamily}/model`));
    const folder = sharedPath(`${kGolden}/vera/adapter-no-projection`);
    await expect(AdapterModel.fromPretrained(model, folder)).rejects.toThrow(
      /has no base_model\.vera_A.*save the adapter with save_projection true/,
    );
    model.dispose();
  });

  describe.each(kNames)('%s', (name) => {
    const path = (file: string): string => sharedPath(`${kGolden}/${name}/${file}`);
    const facts = readJson(path('expected.json')) as Facts;
    const { tolerance } = facts;
    const expected = goldenArrays(path('expected.safetensors'));
    const folder = existsSync(path('adapter')) ? path('adapter') : loraXsFolder(path);

    const load = async (dtype: 'f32' | 'bf16' = 'f32', from = folder): Promise<AdapterModel> =>
      AdapterModel.fromPretrained(
        await AutoModelForCausalLM.fromPretrained(fixturePath(`${kFamily}/model`), { dtype }),
        from,
      );

    it('logits, loss and gradients', async () => {
      const tuned = await load();
      expect(tuned.modules).toHaveLength(21);
      expect(tuned.warnings).toEqual([]);
      expect(logitError(tuned.model, padded, goldenArray(expected, 'logits'))).toBeLessThanOrEqual(
        tolerance.logits_abs,
      );
      const terms = await accumulator(tuned).accumulate(windowOf(padded.batch));
      expect(Math.abs(terms.taskLoss - facts.loss)).toBeLessThanOrEqual(tolerance.loss_abs);
      const compared = [...expected.keys()].filter((key) => key.startsWith('grad.'));
      expect(compared).toHaveLength(tuned.parameters().length);
      const found = new Map(tuned.parameters().map((one) => [one.name, one.tensor.grad]));
      for (const key of compared) {
        const grad = found.get(nameOf(key, 'grad.'))?.dataSync() as Float32Array;
        const golden = Float64Array.from(goldenArray(expected, key).data as Float32Array);
        expect(relativeError(grad, golden), key).toBeLessThanOrEqual(
          tolerance.grad_abs_over_max_abs,
        );
      }
      dispose(tuned);
    });

    it('five steps of AdamW', async () => {
      const tuned = await load();
      const optimizer = new AdamW([
        { parameters: tuned.parameters().map((one) => ({ ...one })), weightDecay: 0 } as never,
      ]);
      const objective = accumulator(tuned);
      const wanted = facts.adamw.losses_before_each_step_and_at_the_end_f64;
      for (const loss of wanted) {
        const terms = await objective.accumulate(windowOf(padded.batch));
        expect(Math.abs(terms.taskLoss - loss)).toBeLessThanOrEqual(tolerance.adamw_losses_abs);
        if (loss === wanted.at(-1)) break;
        optimizer.step({ learningRate: facts.adamw.lr });
        tuned.zeroGradients();
      }
      const found = tuned.state();
      for (const key of [...expected.keys()].filter((one) => one.startsWith('after5.'))) {
        const after = found[nameOf(key, 'after5.')]?.dataSync() as Float32Array;
        const golden = goldenArray(expected, key).data as Float32Array;
        expect(largestError(after, golden), key).toBeLessThanOrEqual(tolerance.adamw_values_abs);
      }
      optimizer.dispose();
      dispose(tuned);
    });

    it('merged weights, and the logits of the merged model', async () => {
      const tuned = await load();
      const merged = join(out, `${name}-merged`);
      await saveMerged(tuned, merged);
      dispose(tuned);
      const found = goldenArrays(join(merged, 'model.safetensors'));
      const keys = [...expected.keys()].filter((key) => key.startsWith('merged.'));
      expect(keys).toHaveLength(2);
      for (const key of keys) {
        const weight = goldenArray(found, key.slice('merged.'.length)).data as Float32Array;
        const golden = Float64Array.from(goldenArray(expected, key).data as Float64Array);
        // Rounded to f32 once.
        expect(relativeError(weight, golden), key).toBeLessThanOrEqual(2 ** -23);
      }
      const model = await AutoModelForCausalLM.fromPretrained(merged, { dtype: 'f32' });
      expect(logitError(model, padded, goldenArray(expected, 'logits'))).toBeLessThanOrEqual(
        tolerance.logits_abs,
      );
      model.dispose();
    });

    it('the same folder after writing and reading', async () => {
      const tuned = await load();
      const written = join(out, `${name}-again`);
      await tuned.savePretrained(written);
      dispose(tuned);
      const config = (of: string) => {
        const text = readFileSync(join(of, 'adapter_config.json'), 'utf8');
        return { text, json: JSON.parse(text) as Record<string, unknown> };
      };
      const [was, is] = [config(folder), config(written)];
      const order = (text: string): string =>
        text.trimEnd().replace(/"target_modules": \[[^\]]*\]/, '');
      expect(order(is.text)).toBe(order(was.text));
      expect(is.json.target_modules).toEqual([was.json.target_modules].flat().sort());
      const [before, after] = [folder, written].map((of) =>
        goldenArrays(join(of, 'adapter_model.safetensors')),
      ) as [Map<string, GoldenArray>, Map<string, GoldenArray>];
      // PEFT repeats RandLoRA's bases in every module.
      const isRepeated = (key: string): boolean => /\.model\..*randlora_[AB]$/.test(key);
      const once = [...before.keys()].filter((key) => !isRepeated(key));
      expect([...after.keys()].sort()).toEqual(once.sort());
      for (const key of once) expect(after.get(key), key).toEqual(before.get(key));
    });

    it('as a plain LoRA', async () => {
      const tuned = await load();
      const written = join(out, `${name}-lora`);
      if (facts.lora_export === undefined) {
        expect(() => tuned.checkForm('plain-lora')).toThrow(/at full rank/);
        await expect(tuned.savePretrained(written, { form: 'plain-lora' })).rejects.toThrow(
          /export "plain-lora" is for adapters that a pair A, B equals/,
        );
        expect(existsSync(written)).toBe(false);
        dispose(tuned);
        return;
      }
      await tuned.savePretrained(written, { form: 'plain-lora' });
      dispose(tuned);
      const config = readJson(join(written, 'adapter_config.json')) as Record<string, unknown>;
      const golden = readJson(path('lora_export/adapter_config.json')) as Record<string, unknown>;
      expect(config).toMatchObject({
        ...{ peft_type: 'LORA', r: facts.lora_export.rank, rank_pattern: golden.rank_pattern },
        lora_alpha: name === 'lora_xs' ? 2 * facts.lora_export.rank : facts.lora_export.rank,
      });
      const again = await load('f32', written);
      expect(logitError(again.model, padded, goldenArray(expected, 'logits'))).toBeLessThanOrEqual(
        tolerance.logits_abs,
      );
      dispose(again);
      // The golden export has another split of the product among A and B, and the same logits.
      const theirs = await load('f32', path('lora_export'));
      expect(logitError(theirs.model, padded, goldenArray(expected, 'logits'))).toBeLessThanOrEqual(
        tolerance.logits_abs,
      );
      dispose(theirs);
    });

    it('logits on a bf16 base', async () => {
      const tuned = await load('bf16');
      const [found, wanted] = realRows(tuned.model, padded, goldenArray(expected, 'logits'));
      expect(normError(found, wanted)).toBeLessThan(kBf16Band.logits);
      dispose(tuned);
    });
  });
});

/** A folder in the product's form of the tensors of the golden LoRA-XS, which PEFT does not have. */
function loraXsFolder(path: (file: string) => string): string {
  const folder = mkdtempSync(join(out, 'lora-xs-'));
  copyFileSync(path('state.safetensors'), join(folder, 'adapter_model.safetensors'));
  const targets = ['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj'];
  const config = loraConfig({
    ...{ peftType: 'LORA_XS', r: 4, loraAlpha: 8, targetModules: targets, taskType: 'CAUSAL_LM' },
    baseModelNameOrPath: 'base',
  });
  writeFileSync(join(folder, 'adapter_config.json'), formatAdapterConfig(config));
  return folder;
}

/** The name in an adapter's state of a golden tensor. */
function nameOf(key: string, prefix: string): string {
  const [, module, rest] = /^base_model\.model\.(.*_proj)\.(.*)$/.exec(
    key.slice(prefix.length),
  ) as unknown as [string, string, string];
  return stateName(module, rest);
}

function dispose(tuned: AdapterModel): void {
  const { model } = tuned;
  tuned.dispose();
  model.dispose();
}

function largestError(found: ArrayLike<number>, wanted: ArrayLike<number>): number {
  expect(found.length).toBe(wanted.length);
  return Array.from(found).reduce(
    (worst, value, i) => Math.max(worst, Math.abs(value - (wanted[i] as number))),
    0,
  );
}

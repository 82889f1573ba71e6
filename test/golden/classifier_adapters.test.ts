/** PEFT adapters with a trained head on tiny classifiers: logits, gradients, the adapter written again, merged weights. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import {
  AutoModelForSequenceClassification as Auto,
  type SequenceClassifier,
} from '../../lib/models/index.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { fixturePath, readJson, relativeError } from '../support/fixtures.ts';
import { goldenArray, goldenArrays } from '../support/golden.ts';
import {
  type ClassifierGolden,
  goldenLoss,
  readClassifierGolden,
} from '../support/golden_classifiers.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-heads-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Facts {
  task: string;
  adapters: Record<
    string,
    {
      loss: number;
      num_adapted_modules: number;
      tolerance: { logits_abs: number; loss_abs: number; grad_abs_over_max_abs: number };
    }
  >;
}

const factsOf = (name: string) => readJson(fixturePath(`architectures/${name}/expected.json`));
const kFamilies = readdirSync(fixturePath('architectures')).filter(
  (name) =>
    existsSync(fixturePath(`architectures/${name}/adapter`)) &&
    (factsOf(name) as Facts).task === 'seq_cls',
);

const logitsOf = (model: SequenceClassifier, { batch }: ClassifierGolden): Float32Array =>
  scope(() => noGrad(() => model.logits(model.forward(batch), batch).dataSync() as Float32Array));

const worst = (found: Float32Array, expected: ArrayLike<number | bigint>): number =>
  found.reduce((most, value, i) => Math.max(most, Math.abs(value - Number(expected[i]))), 0);

const configIn = (path: string): Record<string, unknown> =>
  readJson(join(path, 'adapter_config.json')) as Record<string, unknown>;

describe.each(kFamilies)('PEFT adapters on %s', (name) => {
  const path = fixturePath(`architectures/${name}`);
  const facts = (factsOf(name) as Facts).adapters.adapter as Facts['adapters'][string];
  const expected = goldenArrays(join(path, 'expected-adapter.safetensors'));
  const load = async () =>
    AdapterModel.fromPretrained(
      await Auto.fromPretrained(join(path, 'model')),
      join(path, 'adapter'),
    );

  it('give the logits, loss and gradients, including those of the head', async () => {
    const golden = await readClassifierGolden(name);
    const tuned = await load();
    expect(tuned.modules).toHaveLength(facts.num_adapted_modules);
    expect(tuned.trainsHead).toBe(true);
    const { data } = goldenArray(expected, 'logits');
    expect(worst(logitsOf(tuned.model, golden), data)).toBeLessThanOrEqual(
      facts.tolerance.logits_abs,
    );
    scope(() => {
      const loss = goldenLoss(tuned.model, golden);
      expect(Math.abs(loss.itemSync() - facts.loss)).toBeLessThanOrEqual(facts.tolerance.loss_abs);
      loss.backward();
    });
    const grads = new Map(tuned.parameters().map(({ name: key, tensor }) => [key, tensor.grad]));
    let heads = 0;
    for (const [key, { data: want }] of expected) {
      const match = /^grad\.base_model\.model\.((.*?)(\.weight)?)$/.exec(key);
      if (match === null) continue;
      const [, full, short] = match as unknown as [string, string, string];
      if (!key.includes('lora_')) heads++;
      const grad = (grads.get(full) ?? grads.get(short))?.dataSync() as Float32Array;
      const error = relativeError(grad, Float64Array.from(want as Float32Array));
      expect(error, key).toBeLessThanOrEqual(facts.tolerance.grad_abs_over_max_abs);
    }
    expect(heads).toBeGreaterThan(0);
    // The model is the base, including its head, while the adapter is disabled.
    const base = await Auto.fromPretrained(join(path, 'model'));
    expect(tuned.withTeacher((teacher) => logitsOf(teacher, golden))).toEqual(
      logitsOf(base, golden),
    );
  });

  it('are written as PEFT wrote them, and give the same logits when merged', async () => {
    const golden = await readClassifierGolden(name);
    const tuned = await load();
    const out = join(folder, name);
    await tuned.savePretrained(out);
    const before = goldenArrays(join(path, 'adapter/adapter_model.safetensors'));
    const after = goldenArrays(join(out, 'adapter_model.safetensors'));
    expect([...after.keys()].sort()).toEqual([...before.keys()].sort());
    for (const [key, array] of before) expect(after.get(key), key).toEqual(array);
    // PEFT writes the targets in the order of a Python set, which is arbitrary.
    const { target_modules: targets, ...was } = configIn(join(path, 'adapter'));
    const { target_modules: written, ...is } = configIn(out);
    expect(is).toEqual(was);
    expect([written].flat().sort()).toEqual([targets].flat().sort());

    const adapted = logitsOf(tuned.model, golden);
    await saveMerged(tuned, `${out}-merged`);
    const merged = await Auto.fromPretrained(`${out}-merged`);
    expect(worst(logitsOf(merged, golden), adapted)).toBeLessThanOrEqual(
      facts.tolerance.logits_abs,
    );
  });

  it('train the whole head when fresh, and list it as PEFT does', async () => {
    const model = await Auto.fromPretrained(join(path, 'model'));
    const tuned = await AdapterModel.create(model, { r: 2 });
    const head = (tuned.saved?.parameters ?? []).map(({ name: key }) => key).sort();
    const all = Array.from(model.namedParameters(), ([key]) => key);
    expect(head).toEqual(
      all.filter((key) => model.headPaths.some((at) => key.startsWith(`${at}.`))).sort(),
    );
    expect(tuned.config.modulesToSave?.slice(-2)).toEqual(['classifier', 'score']);
    const out = join(folder, `${name}-fresh`);
    await tuned.savePretrained(out);
    const config = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8'));
    expect(config.task_type).toBe('SEQ_CLS');
    const again = await Auto.fromPretrained(join(path, 'model'));
    const loaded = await AdapterModel.fromPretrained(again, out);
    const names = (one: AdapterModel<SequenceClassifier>) =>
      one.modules.map(({ name: key }) => key).sort();
    expect(names(loaded)).toEqual(names(tuned));
  });
});

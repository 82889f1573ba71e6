// An adapter knows the base that it was saved for, by the tensors in that model's files and its configuration, whatever the folder and
// the dtype. On another base a plain adapter gives a warning, and a pair on a residual is refused.
import { cpSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel, type LoadOptions } from '../../lib/adapters/adapter_model.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { evaluate } from '../../lib/eval/evaluate.ts';
import { loadSafetensors, saveSafetensors } from '../../lib/io/safetensors.ts';
import { baseDigest } from '../../lib/models/base_digest.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { fixturePath } from '../support/fixtures.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { tinyBatches } from '../support/tiny_model.ts';

const kModel = fixturePath('architectures/llama-untied-gqa/model');
const batches = tinyBatches({ count: 2, rows: 12, vocabulary: 96 });

let folder: string;
/** Models: a copy of kModel with its tensors in another order, one with a changed weight, one with another epsilon. */
let [copy, changed, looser] = ['', '', ''];
/** Adapters: a LoRA on kModel, and a PiSSA in the residual form. */
let [plain, residual] = ['', ''];
/** The loss of the tuned model, and its KL to the model before tuning. */
let expected: { loss: number; kl: number | null };

const load = (path: string, dtype: 'f32' | 'bf16' = 'f32') =>
  AutoModelForCausalLM.fromPretrained(path, { dtype });
const onto = async (path: string, adapter: string, options: LoadOptions = {}) =>
  AdapterModel.fromPretrained(await load(path), adapter, options);

async function rewrite(path: string, change: (names: string[]) => string[], bit = false) {
  const file = join(path, 'model.safetensors');
  const { tensors, metadata } = await loadSafetensors(file);
  const names = change(Object.keys(tensors));
  rmSync(file);
  await saveSafetensors(
    file,
    Object.fromEntries(names.map((n) => [n, tensors[n] as never])),
    metadata,
  );
  if (!bit) return;
  const bytes = readFileSync(file);
  bytes[bytes.length - 4] = (bytes[bytes.length - 4] as number) ^ 1;
  writeFileSync(file, bytes);
}

function editConfig(path: string): void {
  const file = join(path, 'config.json');
  const config = JSON.parse(readFileSync(file, 'utf8'));
  writeFileSync(file, JSON.stringify({ ...config, rms_norm_eps: 10 * config.rms_norm_eps }));
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-base-'));
  [copy, changed, looser, plain, residual] = ['copy', 'changed', 'looser', 'plain', 'pissa'].map(
    (name) => join(folder, name),
  ) as [string, string, string, string, string];
  for (const to of [copy, changed, looser]) cpSync(kModel, to, { recursive: true });
  await rewrite(copy, (names) => names.reverse());
  await rewrite(changed, (names) => names, true);
  editConfig(looser);
  const lora = await AdapterModel.create(await load(kModel), { r: 2 });
  await lora.savePretrained(plain);
  const pissa = await AdapterModel.create(await load(kModel), { r: 4, initLoraWeights: 'pissa' });
  disturb(pissa, 100, 0.05);
  expected = await evaluate(pissa, batches);
  await pissa.savePretrained(residual, { form: 'residual' });
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('the digest of a base', () => {
  it('is of the tensors in its files, not of their dtype in memory, their order or their folder', async () => {
    const digest = await baseDigest(await load(kModel));
    expect(digest).toMatchObject({ version: 1, of: 'files' });
    expect(await baseDigest(await load(kModel, 'bf16'))).toEqual(digest);
    expect(await baseDigest(await load(copy))).toEqual(digest);
    expect((await baseDigest(await load(changed))).tensors).not.toBe(digest.tensors);
    expect((await baseDigest(await load(changed))).config).toBe(digest.config);
    expect((await baseDigest(await load(looser))).tensors).toBe(digest.tensors);
    expect((await baseDigest(await load(looser))).config).not.toBe(digest.config);
  });

  it('is of the weights in memory once these are others than the files', async () => {
    const model = await load(kModel);
    const merged = await (await AdapterModel.create(model, { r: 2 })).mergeAndUnload();
    const digest = await baseDigest(merged);
    expect(digest.of).toBe('memory');
    const path = join(folder, 'vanishing');
    cpSync(kModel, path, { recursive: true });
    const loaded = await load(path);
    rmSync(path, { recursive: true });
    expect(await baseDigest(loaded)).toEqual(digest);
  });

  it('is not of files that got the names of those that were opened', async () => {
    const path = join(folder, 'replaced');
    cpSync(kModel, path, { recursive: true });
    let replaced = false;
    const loaded = await AutoModelForCausalLM.fromPretrained(path, {
      onProgress: () => {
        if (replaced) return;
        replaced = true;
        cpSync(join(changed, 'model.safetensors'), join(path, 'new'));
        renameSync(join(path, 'new'), join(path, 'model.safetensors'));
      },
    });
    const merged = await (await AdapterModel.create(await load(kModel), { r: 2 })).mergeAndUnload();
    expect(await baseDigest(loaded)).toEqual(await baseDigest(merged));
  });
});

describe('an adapter', () => {
  it('gives no warning on its base, in another folder and dtype', async () => {
    expect((await onto(kModel, plain)).warnings).toEqual([]);
    expect((await onto(copy, plain)).warnings).toEqual([]);
    const half = await AdapterModel.fromPretrained(await load(kModel, 'bf16'), plain);
    expect(half.warnings).toEqual([]);
  });

  it('gives a warning on a base with other weights or another configuration', async () => {
    expect((await onto(changed, plain)).warnings).toEqual([
      `${plain}: the adapter was saved for another base: ${changed} has other weights`,
    ]);
    expect((await onto(looser, plain)).warnings).toEqual([
      `${plain}: the adapter was saved for another base: ${looser} has another configuration`,
    ]);
  });
});

describe('a pair on a residual', () => {
  const base = () => join(residual, 'residual');

  it('computes there what was trained, with the KL to the model before tuning', async () => {
    const tuned = await onto(base(), residual);
    expect(tuned.warnings).toEqual([]);
    const found = await evaluate(tuned, batches);
    expect(found.loss).toBeCloseTo(expected.loss, 4);
    expect(expected.kl as number).toBeGreaterThan(0.01);
    expect(found.kl as number).toBeCloseTo(expected.kl as number, 4);
    // The residual itself, which the adapter switched off leaves, is another model.
    tuned.enabled = false;
    expect((await evaluate(tuned, batches, { kl: false })).loss).not.toBeCloseTo(expected.loss, 2);
  });

  it('is refused on another base, unless the caller allows it', async () => {
    await expect(onto(kModel, residual)).rejects.toThrow(ArgumentError);
    await expect(onto(kModel, residual)).rejects.toThrow(
      /pissa: the adapter is a pair on a residual, .*llama-untied-gqa\/model has other weights; give the residual .*allowOtherBase: true$/,
    );
    const allowed = await onto(kModel, residual, { allowOtherBase: true });
    expect(allowed.warnings).toEqual([expect.stringMatching(/means nothing on another model/)]);
    const other = join(folder, 'other');
    cpSync(base(), other, { recursive: true });
    await onto(other, residual);
    editConfig(other);
    await expect(onto(other, residual)).rejects.toThrow(/other has another configuration/);
  });

  it('leaves the model as it was where it is refused', async () => {
    const model = await load(kModel);
    await expect(AdapterModel.fromPretrained(model, residual)).rejects.toThrow(ArgumentError);
    expect((await AdapterModel.fromPretrained(model, plain)).warnings).toEqual([]);
  });

  it('keeps its teacher when it is saved again, and has none where its first values are missing', async () => {
    const [again, alone] = [join(folder, 'again'), join(folder, 'alone')];
    await (await onto(base(), residual)).savePretrained(again);
    const { kl } = await evaluate(await onto(base(), again), batches);
    expect(kl as number).toBeCloseTo(expected.kl as number, 4);
    // The first values are the model before tuning.
    const first = await onto(base(), join(residual, 'initial'));
    expect(first.warnings).toEqual([]);
    expect((await evaluate(first, batches)).kl).toBe(0);
    await expect(onto(kModel, join(residual, 'initial'))).rejects.toThrow(/a pair on a residual/);
    await expect(onto(kModel, again)).rejects.toThrow(/a pair on a residual/);
    cpSync(residual, alone, { recursive: true });
    rmSync(join(alone, 'initial'), { recursive: true });
    const tuned = await onto(base(), alone);
    expect(tuned.hasTeacher).toBe(false);
    expect(tuned.warnings).toEqual([expect.stringMatching(/initial is missing, .* no KL to it/)]);
    expect((await evaluate(tuned, batches)).kl).toBeNull();
  });
});

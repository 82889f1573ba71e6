/** `balora convert`: an adapter without a pair as a plain LoRA, and what is refused before a model is loaded. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { balora } from '../support/run_cli.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

let folder: string;
const at = (name: string): string => join(folder, name);
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-convert-cli-'));
  await writeTinyCheckpoint(at('model'));
  const model = await AutoModelForCausalLM.fromPretrained(at('model'));
  const tuned = await AdapterModel.create(model, { method: 'hira', r: 4 });
  disturb(tuned, 1, 0.3);
  await tuned.savePretrained(at('hira'));
});
afterAll(() => rm(folder, { recursive: true }));

const convert = (...more: string[]) =>
  balora(['convert', '--model', at('model'), '--adapter', at('hira'), ...more]);

it('writes a plain LoRA, and says its ranks and largest error', async () => {
  const { code, out } = await convert('--rank', '3', '--output', at('lora'));
  expect(out).toMatch(
    /^written to .*lora\n14 modules of ranks 3 to 3; largest error \d.* % of what the adapter changes, in model\.layers\./,
  );
  expect(code).toBe(0);
  const config = JSON.parse(await readFile(at('lora/adapter_config.json'), 'utf8'));
  expect(config).toMatchObject({ peft_type: 'LORA', r: 3, lora_alpha: 3 });
  const reduced = ['--reduce-intruder-dimensions', '--energy', '0.9', '--output', at('less')];
  expect((await convert(...reduced)).out).toMatch(/\n\d+ intruder dimensions reduced\n$/);
});

it('chooses the ranks itself, and says which and why', async () => {
  const { out } = await convert('--output', at('chosen'));
  expect(out).toMatch(
    /\nranks: those of --energy 0\.99, since none of the adapter's own is exact: HIRA changes the whole weight/,
  );
  const model = await AutoModelForCausalLM.fromPretrained(at('model'));
  const tuned = await AdapterModel.create(model, { method: 'pissa', r: 2 });
  disturb(tuned, 1, 0.3);
  await tuned.savePretrained(at('pissa'));
  const args = ['--model', at('model'), '--adapter', at('pissa'), '--output', at('own')];
  const own = await balora(['convert', ...args]);
  expect(own.out).toMatch(
    /14 modules of ranks 4 to 4; .*\nranks: the adapter's own, at which a plain LoRA equals it\n$/,
  );
  const { out: help } = await balora(['convert', '--help']);
  expect(help.replace(/\s+/g, ' ')).toContain(
    "rank of every module; default: the adapter's own where that is exact, and otherwise that of --energy 0.99",
  );
});

it('is refused with a rank and an energy, and for an output that exists', async () => {
  const both = ['--rank', '2', '--energy', '0.5', '--output', at('none')];
  expect((await convert(...both)).err).toMatch(/convert takes --rank or --energy, not both/);
  expect((await convert('--rank', '2', '--output', at('hira'))).err).toMatch(/is not empty/);
});

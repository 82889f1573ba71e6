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

it('is refused without a rank or an energy, and for an output that exists', async () => {
  expect((await convert('--output', at('none'))).err).toMatch(
    /convert needs either --rank or --energy/,
  );
  expect((await convert('--rank', '2', '--output', at('hira'))).err).toMatch(/is not empty/);
});

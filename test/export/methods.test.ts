/**
 * Every method on its way to programs that know plain LoRA alone: converted it computes the same, or the error is told; each target that
 * holds pairs writes it, or says in one sentence why not, and what to do.
 */
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import { exportModel, exportTarget } from '../../lib/export/registry.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { kOwnForms } from '../support/own_forms.ts';
import { disturb, expectNear } from '../support/tiny_adapters.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

let folder: string;
let path: string;
let count = 0;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-methods-'));
  path = join(folder, 'model');
  await writeTinyCheckpoint(path);
});
afterAll(() => rm(folder, { recursive: true }));

const next = (): string => join(folder, `${count++}`);
const load = (): Promise<CausalLM> => AutoModelForCausalLM.fromPretrained(path);
const kIds = Int32Array.of(1, 5, 2, 7, 3, 9, 4);

const logitsOf = ({ model }: AdapterModel<CausalLM>): number[] =>
  scope(() =>
    noGrad(() => {
      const positions = kIds.map((_, i) => i);
      const cuSeqlens = Int32Array.of(0, kIds.length);
      const states = model.forward({ inputIds: kIds, positions, cuSeqlens });
      return Array.from(model.logits(states).dataSync() as Float32Array);
    }),
  );

async function trained(config: AdapterConfigInput): Promise<AdapterModel<CausalLM>> {
  const tuned = await createCalibrated(await load(), config);
  disturb(tuned, 1, 0.1);
  return tuned;
}

const read = async (from: string): Promise<AdapterModel<CausalLM>> =>
  AdapterModel.fromPretrained(await load(), from);

/** Whether a pair equals the adapter, as docs/methods.md says. */
const isExact = ({ modules }: AdapterModel<CausalLM>): boolean =>
  modules.every(
    ({ variant: { type, parameters }, settings }) =>
      parameters.length === 0 && type.loraObstacle(settings) === null,
  );

/** The error of an export, which must be one sentence and leave nothing behind. */
async function refusal(output: string, work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => null,
    (thrown: unknown) => thrown as Error,
  );
  expect(error?.message).not.toMatch(/\n|\. /);
  await expect(readdir(output)).rejects.toThrow('ENOENT');
  return error?.message ?? 'nothing was refused';
}

const kForms = kOwnForms.filter(([name]) => !kMethodConfigs.some(([method]) => method === name));

describe.each<readonly [string, AdapterConfigInput]>([...kMethodConfigs, ...kForms])(
  '%s',
  (_, config) => {
    it('is converted to a plain LoRA: whole, or with the error that is told', async () => {
      const tuned = await trained(config);
      const expected = logitsOf(tuned);
      const whole = next();
      await tuned.convertToLora(whole, { energy: 1 });
      const again = await read(whole);
      expect([again.config.peftType, again.warnings]).toEqual(['LORA', []]);
      expectNear(logitsOf(again), expected, 1e-4);
      const told = await tuned.convertToLora(next(), { rank: 1 });
      expect(told.map(({ name }) => name)).toEqual(tuned.modules.map(({ name }) => name));
      for (const { name, r, error } of told) {
        expect(r, name).toBe(1);
        // No change is of rank 1, so that one triplet does not hold all of it.
        expect(error, name).toBeGreaterThan(1e-3);
      }
    });

    it('is saved as a plain LoRA, or the reason names the way', async () => {
      const tuned = await trained(config);
      const output = next();
      if (!isExact(tuned)) {
        const saved = tuned.savePretrained(output, { form: 'plain-lora' });
        expect(await refusal(output, saved)).toMatch(
          /^export "plain-lora" is .*\(balora convert\)$/,
        );
        return;
      }
      const expected = logitsOf(tuned);
      await tuned.savePretrained(output, { form: 'plain-lora' });
      expectNear(logitsOf(await read(output)), expected, 1e-4);
    });

    it.each(['gguf-lora', 'mlx'] as const)(
      'goes to %s, or the reason names the way',
      async (to) => {
        const tuned = await trained(config);
        const write = (from: AdapterModel<CausalLM>, output: string) =>
          exportModel(
            exportTarget(to),
            { tuned: from, tokenizer: tinyTokenizer(), adapter: folder, warn: () => {} },
            output,
          );
        const output = next();
        if (isExact(tuned)) {
          const expected = logitsOf(tuned);
          const lines = await write(tuned, output);
          if (tuned.modules.some(({ quantized }) => quantized !== null)) {
            // Codes in the place of the base are no pair: what they have lost is told.
            expect(lines.at(-1)).toMatch(/the pairs lack what the codes have lost, [\d.]+ % of/);
          } else if (to === 'mlx') expectNear(logitsOf(await read(output)), expected, 1e-4);
          return;
        }
        expect(await refusal(output, write(tuned, output))).toMatch(
          /holds pairs A, B alone, .*\(balora convert\), or keep it as a PEFT folder/,
        );
        // The remedy that the refusal names works.
        const converted = next();
        await tuned.convertToLora(converted, { energy: 0.9 });
        expect((await write(await read(converted), output))[0]).toMatch(/^14 modules of rank /);
      },
    );
  },
);

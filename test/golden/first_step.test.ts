/**
 * Before the first update student and teacher are the same model: the consistency term is exactly 0, as docs/repeatability.md says,
 * also where a head is trained whole beside the base's, which is frozen.
 */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { BaLoraLoss } from '../../lib/losses/balora.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { teacherHead, teacherStates } from '../../lib/tasks/language_model.ts';
import { scope, type Tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { architecture, type Golden, readGolden } from '../support/golden_checkpoints.ts';

const kIgnored = -100;

/** The batch with at most this many supervised rows. */
function shortened(batch: Golden['batch'], most: number): Golden['batch'] {
  let count = 0;
  const targets = batch.targets.map((target) =>
    target === kIgnored || ++count > most ? kIgnored : target,
  );
  return { ...batch, targets };
}

/** The consistency term, a sum over the supervised rows. */
function firstStep(
  tuned: AdapterModel<CausalLM>,
  batch: Golden['batch'],
  temperature: number,
): number {
  const { model } = tuned;
  const { weight, softcap } = model.head;
  const head = { weight, softcap, teacherWeight: teacherHead(tuned) };
  const loss = new BaLoraLoss(head, { temperature, terms: { diversity: false, svd: false } });
  const selected = loss.select(batch);
  const { rows } = selected;
  try {
    return scope(() => {
      const teacher = teacherStates(tuned, batch, { rows, int8: undefined });
      const hidden = model.forward(batch, { rows });
      const weights = { consistency: 1 };
      const { values: terms } = loss.compute({ hidden, teacher, batch, selected, weights });
      const { tensor, index } = terms.find(({ key }) => key === 'consistency') as {
        tensor: Tensor;
        index: number;
      };
      expect(values(hidden)).toEqual(values(teacher));
      return values(tensor)[index] as number;
    });
  } finally {
    loss.dispose();
  }
}

const kModels = ['llama-untied-gqa', 'llama-tied', 'qwen3', 'gpt2', 'gemma2'];
describe.each(kModels)('%s', (name) => {
  const dtypes = ['f32', 'bf16'] as const;
  const adapters = (['lora', 'pissa'] as const).flatMap((method) =>
    [null, ['lm_head']].map((modulesToSave) => ({ method, modulesToSave })),
  );
  it.each(dtypes.flatMap((dtype) => adapters.map((adapter) => ({ dtype, ...adapter }))))(
    '$dtype $method, trained $modulesToSave',
    async ({ dtype, method, modulesToSave }) => {
      const { batch } = await readGolden(name);
      const folder = join(architecture(name), 'model');
      const model = await AutoModelForCausalLM.fromPretrained(folder, { dtype });
      const tuned = await AdapterModel.create(model, {
        ...{ method, r: 2, targetModules: 'all-linear' },
        ...(modulesToSave && { modulesToSave }),
      });
      expect(teacherHead(tuned) === null).toBe(modulesToSave === null);
      for (const most of [1, 4, Number.POSITIVE_INFINITY]) {
        for (const temperature of [1, 2, 3, 300]) {
          const value = firstStep(tuned, shortened(batch, most), temperature);
          expect(value, `T ${temperature}, at most ${most} rows`).toBe(0);
        }
      }
      tuned.dispose();
      model.dispose();
    },
  );
});

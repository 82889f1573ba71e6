import { expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../../lib/adapters/config.ts';
import type { Tensor } from '../../../lib/tensor.ts';
import { TinyModel } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);

it('initialises A uniformly within 1/sqrt(in), as a function of seed and module alone', async () => {
  const make = async (config: LoraConfigInput, seed?: number) =>
    (
      await AdapterModel.create(
        new TinyModel(),
        { r: 3, ...config },
        seed === undefined ? {} : { seed },
      )
    ).state();
  const all = await make({});
  const some = await make({ targetModules: ['up_proj'] });
  for (const [name, value] of Object.entries(some)) {
    expect(numbers(value)).toEqual(numbers(all[name] as Tensor));
  }
  const name = 'layers.0.up_proj.lora_A';
  const values = numbers(all[name] as Tensor);
  expect(Math.max(...values.map(Math.abs))).toBeLessThanOrEqual(1 / Math.sqrt(8));
  expect(new Set(values).size).toBeGreaterThan(values.length / 2);
  expect(numbers((await make({}, 43))[name] as Tensor)).not.toEqual(values);
  expect(numbers(all['layers.1.up_proj.lora_A'] as Tensor)).not.toEqual(values);
});

import { expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { matmul } from '../../../lib/ops/index.ts';
import { scope, type Tensor } from '../../../lib/tensor.ts';
import { calibrate } from '../../../lib/train/calibrate.ts';
import { expectNear } from '../../support/tiny_adapters.ts';
import { TinyModel, tinyBatches, tinySource } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);
const data = tinySource(tinyBatches());

it('has orthogonal A and B of the length out^(1/4) / 4, whatever the scale', async () => {
  const model = new TinyModel();
  const config = { method: 'lora_ga', r: 2, loraAlpha: 8 } as const;
  const calibration = await calibrate(model, config, { data });
  const tuned = await AdapterModel.create(model, config, { calibration });
  for (const { pair, linear } of tuned.modules) {
    const length = linear.outFeatures ** 0.5 / 16;
    const [a, b] = scope(() => [
      numbers(matmul(pair.a, pair.a, { transposeB: true })),
      numbers(matmul(pair.b, pair.b, { transposeA: true })),
    ]) as [number[], number[]];
    expectNear(a, [length, 0, 0, length], 1e-5);
    expectNear(b, [length, 0, 0, length], 1e-5);
  }
});

it('refuses a rank of more than half the weight', async () => {
  await expect(calibrate(new TinyModel(), { method: 'lora_ga', r: 5 }, { data })).rejects.toThrow(
    'layers.0.gate_proj: LoRA-GA takes 2r singular triplets of the gradient, and (out,in)=(16,8) has 8; set r, or rankPattern for it, to 4 at most, got r=5',
  );
});

/** Adapters with any start on tiny models: where the start is computed from data, they are calibrated first. */
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { loraConfig } from '../../lib/adapters/config.ts';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import { presetSettings } from '../../lib/adapters/methods/preset.ts';
import { startNamed } from '../../lib/adapters/methods/registry.ts';
import type { BatchSource } from '../../lib/data/batch_source.ts';
import type { Model } from '../../lib/models/index.ts';
import { calibrate } from '../../lib/train/calibrate.ts';
import { tinyBatches, tinySource } from './tiny_model.ts';

/** Creates an adapter as AdapterModel.create() does, with a calibration on `data` where its start needs one. */
export async function createCalibrated<M extends Model>(
  model: M,
  config: AdapterConfigInput,
  data: BatchSource = tinySource(tinyBatches({ rows: 24 })),
): Promise<AdapterModel<M>> {
  const { method, ...given } = config;
  const settings = method === undefined ? given : presetSettings(method, given);
  const start = startNamed(loraConfig(settings ?? {}).initLoraWeights);
  if (start?.calibration === undefined) return AdapterModel.create(model, config);
  const calibration = await calibrate(model, config, { data });
  const tuned = await AdapterModel.create(model, config, { calibration });
  calibration.dispose();
  return tuned;
}

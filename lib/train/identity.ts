/** A run's identity: what must be the same for a checkpoint to go on bit for bit. */
import { createHash } from 'node:crypto';
import { isOfHead } from '../adapters/attach.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { UnsupportedError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import { slice } from '../ops/index.ts';
import { noGrad, type Tensor } from '../tensor.ts';
import { identityOfTable, type OptionTable } from '../options/option.ts';
import type { Identity, ResolvedOptions } from './options.ts';
import { REGULARIZER_OPTIONS } from './regularizers.ts';
import {
  bestOptions,
  optimizationOptions,
  outputOptions,
  preparationOptions,
  resourceOptions,
  seedOptions,
} from './schema.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { RunPlan } from './types.ts';

/** Hexadecimal digits of a digest that errors show. */
const kDigits = 16;

/** Everything that the numbers depend on; threads and machine are the caller's business (docs: what repeats). */
export async function identityOf(
  input: AnyTrainerOptions,
  options: ResolvedOptions,
  plan: RunPlan,
): Promise<Identity> {
  const sharesPrefixes = input.tuned.model.sharePrefixes && !options.resources.captureGraphs;
  return {
    ...partOf(optimizationOptions, options.optimization),
    ...partOf(REGULARIZER_OPTIONS, options.regularizers),
    warmupSteps: plan.warmupSteps,
    ...partOf(seedOptions, options),
    data: input.data.fingerprint,
    dtype: input.tuned.model.dtype,
    baseModel: await baseModel(input.tuned, plan.baseParameters),
    ...partOf(resourceOptions, options.resources),
    ...(!sharesPrefixes && { sharePrefixes: false }),
    customLoss: input.loss !== undefined,
    ...(input.terms !== undefined &&
      input.terms.length > 0 && { terms: input.terms.map(({ key }) => key) }),
    ...(input.afterBackward !== undefined && { afterBackward: true }),
    ...partOf(outputOptions, options.output),
    // Their defaults depend on the model: what was given counts.
    ...partOf({ ...preparationOptions, ...bestOptions }, input),
    ...input.tuned.identity(),
  };
}

const partOf = (table: OptionTable, values: object): Identity =>
  identityOfTable(table, values as Identity);

/** A model by what it is, wherever it lies: a copy in another folder is the same, one with other weights is not. */
async function baseModel(tuned: TunedModel<Model>, parameters: number): Promise<string> {
  const { model } = tuned;
  const hash = createHash('sha256').update(JSON.stringify(configOf(model)));
  // Where all weights are trained and there is no teacher, the checkpoint has every one of them.
  if (tuned.hasTeacher) {
    const samples = tuned.withTeacher((base) => noGrad(() => samplesOf(base)));
    try {
      for (const [name, rows] of samples) {
        const values = await rows.data();
        hash.update(name).update(new Uint8Array(values.buffer));
      }
    } finally {
      for (const [, rows] of samples) rows.dispose();
    }
  }
  const digest = hash.digest('hex').slice(0, kDigits);
  return `${model.modelType}, ${parameters} parameters, ${digest}`;
}

/** What the mathematics needs; the dtype is compared by its own name. */
function configOf(model: Model): Record<string, unknown> {
  try {
    const { dtype: _, ...config } = model.configJson();
    return config;
  } catch (error) {
    // A GGUF file may say what config.json cannot; its weights still tell it from another one.
    if (error instanceof UnsupportedError) return {};
    throw error;
  }
}

/**
 * The first row of each weight: tuning, merging or another seed changes every matrix that it touches, and all of them would
 * take as long to read as the model. Not of the head: a classifier's may be drawn or warmed up on the spot.
 */
function samplesOf(base: Model): [string, Tensor][] {
  return Array.from(base.namedParameters())
    .filter(([name]) => !isOfHead(base, name))
    .map(([name, weight]) => [name, slice(weight, 0, { stop: 1 })]);
}

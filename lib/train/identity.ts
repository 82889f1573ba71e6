/** The identity of a run: everything that must be the same for a checkpoint to be continued bit for bit. */
import { createHash } from 'node:crypto';
import { isOfHead } from '../adapters/attach.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { UnsupportedError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import { slice } from '../ops/index.ts';
import { identityOfTable, type OptionTable } from '../options/option.ts';
import { noGrad, type Tensor } from '../tensor.ts';
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

/** The number of hexadecimal digits of a digest, as shown in errors. */
const kDigits = 16;

/**
 * The identity of a run, which covers everything that its numbers depend on except the number of threads and the machine; see
 * docs/repeatability.md for what is reproducible.
 */
export async function identityOf(
  input: AnyTrainerOptions,
  options: ResolvedOptions,
  plan: RunPlan,
): Promise<Identity> {
  const sharesPrefixes = input.tuned.model.sharePrefixes && !options.resources.captureGraphs;
  return {
    ...partOf(optimizationOptions, options.optimization),
    // A loss of the caller's own replaces all terms.
    ...(input.loss === undefined && partOf(REGULARIZER_OPTIONS, options.regularizers)),
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
    // The defaults of these options depend on the model, so the values that the caller gave are compared.
    ...partOf({ ...preparationOptions, ...bestOptions }, input),
    ...input.tuned.identity(),
  };
}

const partOf = (table: OptionTable, values: object): Identity =>
  identityOfTable(table, values as Identity);

/**
 * A description of a model that does not depend on its path: copies in different folders are the same, models with different
 * weights are not.
 */
async function baseModel(tuned: TunedModel<Model>, parameters: number): Promise<string> {
  const { model } = tuned;
  const hash = createHash('sha256').update(JSON.stringify(configOf(model)));
  // Without a teacher all weights are trained, so the checkpoint contains each of them.
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

/** The part of the configuration that the computations depend on; the dtype is compared separately. */
function configOf(model: Model): Record<string, unknown> {
  try {
    const { dtype: _, ...config } = model.configJson();
    return config;
  } catch (error) {
    // Some GGUF files have settings that config.json cannot express; they are compared by their weights alone.
    if (error instanceof UnsupportedError) return {};
    throw error;
  }
}

/**
 * The first row of each weight: tuning, merging or another seed changes every matrix concerned, and reading all rows would take
 * as long as reading the model. A classifier's head is left out, because its values may be new or come from a warm-up.
 */
function samplesOf(base: Model): [string, Tensor][] {
  return Array.from(base.namedParameters())
    .filter(([name]) => !isOfHead(base, name))
    .map(([name, weight]) => [name, slice(weight, 0, { stop: 1 })]);
}

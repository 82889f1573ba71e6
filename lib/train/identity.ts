/** The identity of a run: everything that must be the same for a checkpoint to be continued bit for bit. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { baseDigest, baseSummary } from '../models/base_digest.ts';
import type { Model } from '../models/index.ts';
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
    ...(input.data.settings !== undefined && { dataOptions: input.data.settings }),
    dtype: input.tuned.model.dtype,
    baseModel: await baseModel(input.tuned),
    ...(input.tuned.model.blockFormat !== null && { baseFormat: input.tuned.model.blockFormat }),
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
async function baseModel(tuned: TunedModel<Model>): Promise<string> {
  const digest = await (tuned.hasTeacher ? tuned.withTeacher(baseDigest) : baseDigest(tuned.model));
  // Where all weights are trained, the checkpoint contains each of them, unless they have a frozen copy.
  const isTrained = tuned.kind === 'full' && !tuned.hasTeacher;
  return baseSummary(tuned.model, digest, { tensors: !isTrained });
}

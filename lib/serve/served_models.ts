/** The models that a server has: a model, and each of its adapters under a name of its own. */

import { ArgumentError } from '../errors.ts';
import type { Generator } from '../generate/generate.ts';
import type { GeneratingModel } from '../generate/open_session.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { ApiError } from './api_error.ts';

/** A model of a server. */
export interface ServedModel {
  /** Its name in requests. */
  readonly id: string;
  /** The adapter that answers; null: the model before tuning. undefined: the model as it is. */
  readonly adapter: string | null | undefined;
}

/** The model, the adapters and the tokenizer that a server answers with. */
export interface ServedModels {
  readonly generator: Generator;
  readonly model: GeneratingModel;
  readonly tokenizer: Tokenizer;
  /** The first is the model itself. */
  readonly models: readonly ServedModel[];
}

/** Refuses models of which two have the same name. @throws ArgumentError */
export function checkNames(models: readonly ServedModel[]): void {
  const ids = models.map(({ id }) => id);
  const twice = ids.find((id, i) => ids.indexOf(id) !== i);
  if (twice === undefined) return;
  throw new ArgumentError(
    `two models have the name "${twice}"; name adapters with --adapter name=folder, and the model with --served-model-name`,
  );
}

/** The model that a request names. @throws ApiError (404) */
export function modelNamed(models: readonly ServedModel[], id: string): ServedModel {
  const found = models.find((model) => model.id === id);
  if (found !== undefined) return found;
  const known = models.map((model) => model.id).join(', ');
  throw new ApiError(`there is no model "${id}"; known: ${known}`, {
    ...{ status: 404, param: 'model', code: 'model_not_found' },
  });
}

/** A model as GET /v1/models has it. @param created seconds since 1970 */
export function describeModel({ id, adapter }: ServedModel, created: number, base: string): object {
  const isAdapter = typeof adapter === 'string';
  return { id, object: 'model', created, owned_by: 'balora', ...(isAdapter && { parent: base }) };
}

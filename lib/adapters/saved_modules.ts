/**
 * Modules that an adapter trains and saves whole (PEFT's modules_to_save): a classifier, a norm, the head. Their trained parameters
 * replace the base's while the adapter is on; the base's are put back for the teacher.
 */
import { ArgumentError, FormatError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import type { Module } from '../nn/index.ts';
import { Tensor } from '../tensor.ts';
import { isTrailing } from './targets.ts';
import {
  collectGradients,
  decaysIn,
  graphObstacle,
  refreshWorking,
  type TrainedParameter,
  trainedParameter,
  zeroGradients,
} from './trained_parameter.ts';

/** Place of a parameter in the model. */
interface Place {
  readonly name: string;
  readonly module: Module;
  readonly attribute: string;
  readonly base: Tensor;
}

/** Modules that PEFT adds to every classifier's list, whether the model has them or not. */
export const CLASSIFIER_MODULES: readonly string[] = ['classifier', 'score'];

/** The modules that an adapter trains and keeps whole (PEFT's modules_to_save); `AdapterModel.saved` has the active adapter's. */
export class SavedModules {
  /** The trained parameters, named by their path in the model. */
  readonly parameters: readonly TrainedParameter[];
  private readonly places: readonly Place[];

  /**
   * @param names whole trailing names of modules
   * @param values trained parameters of a file by path; null: they start as the base's
   * @throws ArgumentError for a name that no module has, FormatError for values that do not fit
   */
  constructor(
    model: Model,
    names: readonly string[],
    values: { tensors: ReadonlyMap<string, Tensor>; path: string } | null = null,
  ) {
    this.places = placesOf(model, names);
    if (values !== null) checkValues(this.places, values.tensors, values.path);
    this.parameters = this.places.map(({ name, module, attribute, base }) =>
      trainedParameter(
        { name, base, decays: decaysIn(module, attribute) },
        values?.tensors.get(name),
      ),
    );
  }

  /** Puts the trained parameters into the model, in place of the base's. */
  on(): void {
    this.places.forEach((place, i) => {
      put(place, (this.parameters[i] as TrainedParameter).working);
    });
  }

  /** Puts the base's parameters back into the model. */
  off(): void {
    for (const place of this.places) put(place, place.base);
  }

  /** The reason why passes with these modules cannot be recorded as graphs; null: they can. */
  get graphObstacle(): string | null {
    return graphObstacle(this.parameters);
  }

  /** Moves the gradients of the working copies to the masters. */
  collectGradients(): void {
    collectGradients(this.parameters);
  }

  /** Drops the gradients of masters and working copies. */
  zeroGradients(): void {
    zeroGradients(this.parameters);
  }

  /** Rounds the masters into the working copies, after the masters were written. */
  refresh(): void {
    refreshWorking(this.parameters);
  }

  /** Paths of parameters that the base shares with another module (a tied head). */
  tiedIn(model: Model): string[] {
    const standing = Array.from(allPlaces(model));
    return this.places
      .filter((place, i) => {
        const tensors = [place.base, (this.parameters[i] as TrainedParameter).working];
        return standing.some(({ name, base }) => name !== place.name && tensors.includes(base));
      })
      .map(({ name }) => name);
  }

  /** Frees the trained parameters; the base's belong to the model. */
  dispose(): void {
    for (const { tensor, working } of this.parameters) {
      tensor.dispose();
      if (working !== tensor) working.dispose();
    }
  }
}

/** Whether a module of this path belongs to one that is saved whole (and so gets no low-rank pair). */
export function isSaved(path: string, names: readonly string[] | null): boolean {
  const parts = path.split('.');
  return parts.some((_, i) =>
    names?.some((entry) => isTrailing(entry, parts.slice(0, i + 1).join('.'))),
  );
}

/** Every place of a parameter below a module; a tied parameter is given once for each of its places. */
function* allPlaces(root: Module, path = ''): Generator<Place> {
  for (const [below, module] of root.namedModules(path)) {
    for (const [attribute, base] of Object.entries(module)) {
      if (!(base instanceof Tensor)) continue;
      yield { name: below === '' ? attribute : `${below}.${attribute}`, module, attribute, base };
    }
  }
}

function placesOf(model: Model, names: readonly string[]): Place[] {
  const places = new Map<string, Place>();
  const found = new Set<string>();
  for (const [path, module] of model.namedModules()) {
    const hits = names.filter((entry) => path !== '' && isTrailing(entry, path));
    if (hits.length === 0) continue;
    for (const entry of hits) found.add(entry);
    for (const place of allPlaces(module, path)) places.set(place.name, place);
  }
  const missing = names.filter((entry) => !found.has(entry) && !CLASSIFIER_MODULES.includes(entry));
  if (missing.length > 0) {
    throw new ArgumentError(`modulesToSave ${JSON.stringify(missing)} matches no module`);
  }
  return [...places.values()];
}

function checkValues(
  places: readonly Place[],
  tensors: ReadonlyMap<string, Tensor>,
  path: string,
): void {
  const wanted = new Map(places.map(({ name, base }) => [name, base.shape.join(',')]));
  for (const name of new Set([...wanted.keys(), ...tensors.keys()])) {
    const [want, got] = [wanted.get(name), tensors.get(name)?.shape.join(',')];
    if (want === got) continue;
    const what =
      got === undefined
        ? `lacks "${name}" of a module that is kept whole; it has ${[...tensors.keys()].join(', ') || 'none'}`
        : want === undefined
          ? `keeps "${name}", which the model does not have`
          : `the saved module's "${name}" has the shape (${got}), the model's (${want})`;
    throw new FormatError(`${path}: ${what}: an adapter of another model or head`, { path });
  }
}

function put({ module, attribute }: Place, tensor: Tensor): void {
  (module as unknown as Record<string, unknown>)[attribute] = tensor;
}

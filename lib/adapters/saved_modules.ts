/**
 * Modules that an adapter trains and saves whole (PEFT's modules_to_save): a classifier, a norm, the head. Their trained parameters
 * replace the base's while the adapter is on; the base's are put back for the teacher.
 */
import { ArgumentError, FormatError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import type { Module } from '../nn/index.ts';
import { shown } from '../shown.ts';
import { Tensor } from '../tensor.ts';
import { kOtherModel } from './attach.ts';
import { isTrailing, lastNames } from './targets.ts';
import {
  collectGradients,
  decaysIn,
  graphObstacle,
  refreshWorking,
  type TrainedParameter,
  trainedParameter,
  zeroGradients,
} from './trained_parameter.ts';

/** A parameter of the base and the attribute that holds it. */
interface BaseParameter {
  readonly name: string;
  readonly module: Module;
  readonly attribute: string;
  readonly tensor: Tensor;
}

/** Modules that PEFT adds to every classifier's list, whether the model has them or not. */
export const CLASSIFIER_MODULES: readonly string[] = ['classifier', 'score'];

/** The modules that an adapter trains and saves whole (PEFT's modules_to_save); `AdapterModel.saved` has the active adapter's. */
export class SavedModules {
  /** The trained parameters, named by their path in the model. */
  readonly parameters: readonly TrainedParameter[];
  private readonly base: readonly BaseParameter[];

  /**
   * Makes a trained copy of every parameter of the modules.
   * @param names whole trailing names of modules
   * @param values trained parameters of a file by path; null: they start as the base's
   * @throws ArgumentError for a name that no module has, FormatError for values that do not fit
   */
  constructor(
    model: Model,
    names: readonly string[],
    values: { tensors: ReadonlyMap<string, Tensor>; path: string } | null = null,
  ) {
    this.base = parametersOfModules(model, names);
    if (values !== null) checkValues(this.base, values.tensors, values.path);
    this.parameters = this.base.map(({ name, module, attribute, tensor }) =>
      trainedParameter(
        { name, base: tensor, decays: decaysIn(module, attribute) },
        values?.tensors.get(name),
      ),
    );
  }

  /** Puts the trained parameters into the model, in place of the base's. */
  attach(): void {
    this.base.forEach((parameter, i) => {
      setTensor(parameter, (this.parameters[i] as TrainedParameter).working);
    });
  }

  /** Puts the base's parameters back into the model. */
  detach(): void {
    for (const parameter of this.base) setTensor(parameter, parameter.tensor);
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
    const all = Array.from(allParameters(model));
    return this.base
      .filter((own, i) => {
        const tensors = [own.tensor, (this.parameters[i] as TrainedParameter).working];
        return all.some(({ name, tensor }) => name !== own.name && tensors.includes(tensor));
      })
      .map(({ name }) => name);
  }

  /** Leaves the trained parameters in the model for good, frozen as the base's were, and frees the base's and the masters. */
  unload(): void {
    this.attach();
    for (const { tensor } of this.base) tensor.dispose();
    for (const { tensor, working } of this.parameters) {
      working.grad = null;
      working.requiresGrad = false;
      working.freeze();
      if (working !== tensor) tensor.dispose();
    }
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

/** Every parameter below a module; a tied one is given once for each module that holds it. */
function* allParameters(root: Module, path = ''): Generator<BaseParameter> {
  for (const [below, module] of root.namedModules(path)) {
    for (const [attribute, tensor] of Object.entries(module)) {
      if (!(tensor instanceof Tensor)) continue;
      yield { name: below === '' ? attribute : `${below}.${attribute}`, module, attribute, tensor };
    }
  }
}

/** The parameters of the modules that `names` select. @throws ArgumentError for a name that no module has */
function parametersOfModules(model: Model, names: readonly string[]): BaseParameter[] {
  const parameters = new Map<string, BaseParameter>();
  const found = new Set<string>();
  for (const [path, module] of model.namedModules()) {
    const matching = names.filter((entry) => path !== '' && isTrailing(entry, path));
    if (matching.length === 0) continue;
    for (const entry of matching) found.add(entry);
    for (const parameter of allParameters(module, path)) parameters.set(parameter.name, parameter);
  }
  const missing = names.filter((entry) => !found.has(entry) && !CLASSIFIER_MODULES.includes(entry));
  if (missing.length > 0) {
    const paths = Array.from(model.namedModules(), ([path]) => path).filter((path) => path !== '');
    throw new ArgumentError(
      `modulesToSave ${shown(missing)} matches no module; names that exist: ${lastNames(paths)}`,
    );
  }
  return [...parameters.values()];
}

function checkValues(
  parameters: readonly BaseParameter[],
  tensors: ReadonlyMap<string, Tensor>,
  path: string,
): void {
  const wanted = new Map(parameters.map(({ name, tensor }) => [name, tensor.shape.join(',')]));
  for (const name of new Set([...wanted.keys(), ...tensors.keys()])) {
    const [want, got] = [wanted.get(name), tensors.get(name)?.shape.join(',')];
    if (want === got) continue;
    const what =
      got === undefined
        ? `lacks "${name}" of a module that is saved whole; it has ${[...tensors.keys()].join(', ') || 'none'}`
        : want === undefined
          ? `has "${name}", which the model does not have`
          : `the saved module's "${name}" has the shape (${got}), the model's (${want})`;
    throw new FormatError(`${path}: ${what}: the adapter is of another model or head`, {
      path,
      advice: kOtherModel,
    });
  }
}

function setTensor({ module, attribute }: BaseParameter, tensor: Tensor): void {
  (module as unknown as Record<string, unknown>)[attribute] = tensor;
}

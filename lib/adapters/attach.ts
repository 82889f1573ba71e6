/** Lookup of the linear modules that adapters are installed on, and the checks that come with it. */
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import { Model } from '../models/index.ts';
import { Linear } from '../nn/linear.ts';
import { copy_, zeros } from '../ops/index.ts';
import { checkArgument, instanceOf } from '../options/call.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import { type LowRankPair, masterDType } from './low_rank.ts';
import type { TargetCandidate } from './targets.ts';

/** Advice where the tensors of an adapter's file do not belong to the model. */
export const kOtherModel = 'load the adapter on the model that it was trained on';

/** A linear module of a model under its path in the checkpoint. */
export interface NamedLinear extends TargetCandidate {
  readonly linear: Linear;
}

/** Models that are being given their first adapter: nothing on the model shows it before it is there. */
const kBeingAdapted = new WeakSet<Model>();

const kModel = instanceOf(Model, 'a model, such as AutoModelForCausalLM loads');

/** Checks that no linear module has an adapter yet, and none is being made. @throws ArgumentError if one has */
export function checkNoAdapters(model: Model): void {
  checkArgument('tuning: the model', kModel, model);
  if (kBeingAdapted.has(model)) {
    throw new ArgumentError(
      'the model is being given an adapter already: await that, and use addAdapter() for another one',
    );
  }
  for (const { name, linear } of linearsOf(model)) {
    if (linear.adapter === null) continue;
    throw new ArgumentError(
      `${name} has an adapter already; dispose of its AdapterModel first, or add another adapter to that with addAdapter()`,
    );
  }
}

/** Runs `add`, which gives a model its first adapter. @throws ArgumentError as checkNoAdapters() */
export async function firstAdapter<T>(model: Model, add: () => Promise<T>): Promise<T> {
  checkNoAdapters(model);
  kBeingAdapted.add(model);
  try {
    return await add();
  } finally {
    kBeingAdapted.delete(model);
  }
}

/** Every linear module of a model. */
export function linearsOf(model: Model): NamedLinear[] {
  const linears: NamedLinear[] = [];
  for (const [name, module] of model.namedModules()) {
    if (!(module instanceof Linear)) continue;
    const [outFeatures, inFeatures] = module.weight.shape as [number, number];
    const isHead = isOfHead(model, name);
    linears.push({ name, linear: module, inFeatures, outFeatures, isHead });
  }
  return linears;
}

/** The linear module of a name that was read from a file. @throws FormatError with the names that exist */
export function linearNamed(linears: readonly NamedLinear[], name: string, path: string): Linear {
  const found = linears.find((one) => one.name === name);
  if (found === undefined) {
    const example = linears[0]?.name ?? '(none)';
    throw new FormatError(
      `${path}: the adapter has tensors for "${name}", which is no linear module of the model (it has e.g. "${example}")`,
      { path, advice: kOtherModel },
    );
  }
  return found.linear;
}

/** Whether a module is the head of its model, or a part of it. */
export function isOfHead(model: Model, name: string): boolean {
  return model.headPaths.some((path) => name === path || name.startsWith(`${path}.`));
}

/** Refuses the output head, because the losses read it as a plain matrix. @throws UnsupportedError */
export function refuseHead(model: Model, name: string): void {
  if (isOfHead(model, name)) {
    throw new UnsupportedError(
      `${name}: an adapter on the output head is not supported yet; leave it out of targetModules, or train it whole with modulesToSave`,
    );
  }
}

/** Freezes all weights of the model: none requires a gradient, and kernels may keep packed layouts of all of them. */
export function freezeBase(model: Model): void {
  for (const [, parameter] of model.namedParameters()) {
    parameter.requiresGrad = false;
    parameter.freeze();
  }
}

/** Master copies of a pair that collect gradients; `pair` itself stays unchanged. */
export function trainablePair(pair: LowRankPair, linear: Linear): LowRankPair {
  return { a: masterOf(pair.a, linear), b: masterOf(pair.b, linear) };
}

/** A trainable copy of `values` in f32, or in f64 where the linear's weight is f64. */
export function masterOf(values: Tensor, { weight }: Linear): Tensor {
  const dtype = masterDType(weight.dtype);
  const master = unscoped(() => zeros(values.shape, { dtype, device: weight.device }));
  scope(() => noGrad(() => copy_(master, values.to(dtype))));
  master.requiresGrad = true;
  return master;
}

/** Checks that both hold the same names with the same shapes. @throws FormatError if they do not */
export function checkSameTensors(
  expected: Readonly<Record<string, Tensor>>,
  found: Readonly<Record<string, Tensor>>,
  path: string,
): void {
  for (const name of new Set([...Object.keys(expected), ...Object.keys(found)])) {
    const [want, got] = [expected[name]?.shape.join(','), found[name]?.shape.join(',')];
    if (want !== got) {
      throw new FormatError(
        `${path}: tensor "${name}": expected (${want ?? 'none'}), got (${got ?? 'none'})`,
        {
          path,
          advice: 'restore it into a model and an adapter with the settings that it was saved with',
        },
      );
    }
  }
}

/** Paths of all linear modules. */
export function linearNames(model: Model): string[] {
  return linearsOf(model).map(({ name }) => name);
}

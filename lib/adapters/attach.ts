/**
 * The way from a model to the linear modules that adapters hook, and the checks on the way.
 */
import { withDevice } from '../device.ts';
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import { Linear } from '../nn/linear.ts';
import { copy_, zeros } from '../ops/index.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import type { LoraConfig } from './config.ts';
import { type InitialPair, initialiser, type LowRankPair } from './init.ts';
import type { TargetCandidate } from './targets.ts';
import { masterDType } from './variants.ts';

/** A linear module of a model under its path in the checkpoint. */
export interface NamedLinear extends TargetCandidate {
  readonly linear: Linear;
}

/** @throws ArgumentError if a linear module is hooked already */
export function freeLinears(model: Model): void {
  for (const { name, linear } of linearsOf(model)) {
    if (linear.adapter === null) continue;
    throw new ArgumentError(
      `${name} has an adapter already: dispose of that one first, or add() to its AdapterModel`,
    );
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

/** @throws FormatError (for a file) with the names that exist. */
export function linearNamed(linears: readonly NamedLinear[], name: string, path: string): Linear {
  const found = linears.find((one) => one.name === name);
  if (found === undefined) {
    const example = linears[0]?.name ?? '(none)';
    throw new FormatError(
      `${path}: the adapter has tensors for "${name}", which is no linear module of the model (it has e.g. "${example}")`,
      { path },
    );
  }
  return found.linear;
}

/** Whether a module is the head of its model, or a part of it. */
export function isOfHead(model: Model, name: string): boolean {
  return model.headPaths.some((path) => name === path || name.startsWith(`${path}.`));
}

/** @throws UnsupportedError for the output head: the losses read it as a plain matrix. */
export function refuseHead(model: Model, name: string): void {
  if (isOfHead(model, name)) {
    throw new UnsupportedError(`${name}: an adapter on the output head is not supported yet`);
  }
}

/** No weight of the model wants a gradient, and kernels may keep packed layouts of all of them. */
export function freezeBase(model: Model): void {
  for (const [, parameter] of model.namedParameters()) {
    parameter.requiresGrad = false;
    parameter.freeze();
  }
}

/** A module whose pair {@link initialPairs} makes. */
export interface PairTarget {
  name: string;
  r: number;
  scale: number;
  linear: Linear;
  seed: number;
}

/** First values of the modules' pairs, in their order. All modules are on one device. */
export function initialPairs(config: LoraConfig, targets: readonly PairTarget[]): InitialPair[] {
  const device = targets[0]?.linear.weight.device;
  const inputs = targets.map(({ linear, ...rest }) => {
    const [outFeatures, inFeatures] = linear.weight.shape as [number, number];
    const weight = (): Tensor =>
      linear.weight.dtype === 'f64' ? linear.weight.to('f32') : linear.weight;
    return { ...rest, outFeatures, inFeatures, weight };
  });
  const pairs = withDevice(device, () => unscoped(() => initialiser(config)(inputs)));
  return pairs.map((initial, i) => {
    if (targets[i]?.linear.weight.dtype !== 'f64') return initial;
    const { a, b } = initial;
    const wide = unscoped(() => ({ ...initial, a: a.to('f64'), b: b.to('f64') }));
    for (const tensor of [a, b]) tensor.dispose();
    return wide;
  });
}

/** Masters of their own that collect gradients; `pair` stays as it is. */
export function trainablePair(pair: LowRankPair, linear: Linear): LowRankPair {
  return { a: masterOf(pair.a, linear), b: masterOf(pair.b, linear) };
}

/** A trained copy in f32 (f64 beside f64). */
export function masterOf(values: Tensor, { weight }: Linear): Tensor {
  const dtype = masterDType(weight.dtype);
  const master = unscoped(() => zeros(values.shape, { dtype, device: weight.device }));
  scope(() => noGrad(() => copy_(master, values.to(dtype))));
  master.requiresGrad = true;
  return master;
}

/** @throws FormatError if a pair or a variant's tensor does not fit its module. */
export function checkShapes(
  { name, pair: { a, b }, extra }: { name: string; pair: LowRankPair; extra: Tensor | null },
  { inFeatures, outFeatures }: Linear,
  path: string,
): void {
  const fits =
    a.shape[1] === inFeatures &&
    b.shape[0] === outFeatures &&
    (extra === null || extra.shape.join() === String(outFeatures));
  if (fits) return;
  const beside = extra === null ? '' : ` and (${extra.shape.join(',')}) beside them`;
  throw new FormatError(
    `${path}: ${name}: lora_A (r,in)=(${a.shape.join(',')}), lora_B (out,r)=(${b.shape.join(',')})${beside} ` +
      `do not fit the weight (out,in)=(${outFeatures},${inFeatures})`,
    { path },
  );
}

/** @throws FormatError unless both hold the same names with the same shapes. */
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
        { path },
      );
    }
  }
}

/** Paths of all linear modules. */
export function linearNames(model: Model): string[] {
  return linearsOf(model).map(({ name }) => name);
}

/**
 * The way from a model to the linear modules that adapters hook, and the checks on the way.
 */
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import { Linear } from '../nn/linear.ts';
import { copy_, zeros } from '../ops/index.ts';
import { scope, type Tensor, unscoped } from '../tensor.ts';
import type { LoraConfig } from './config.ts';
import { type InitialPair, initialiser, type LowRankPair } from './init.ts';
import type { TargetCandidate } from './targets.ts';

/** A linear module of a model under its path in the checkpoint. */
export interface NamedLinear extends TargetCandidate {
  readonly linear: Linear;
}

/** Every linear module of a model. @throws ArgumentError if one is hooked already. */
export function freeLinears(model: Model): NamedLinear[] {
  const linears: NamedLinear[] = [];
  for (const [name, module] of model.namedModules()) {
    if (!(module instanceof Linear)) continue;
    if (module.adapter !== null) {
      throw new ArgumentError(`${name} has an adapter already: dispose of that one first`);
    }
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

/** First values of a module's pair. */
export function initialPair(
  config: LoraConfig,
  target: { name: string; r: number; scale: number; linear: Linear; seed: number },
): InitialPair {
  const { linear, ...rest } = target;
  const [outFeatures, inFeatures] = linear.weight.shape as [number, number];
  return unscoped(() =>
    initialiser(config)({
      ...rest,
      outFeatures,
      inFeatures,
      weight: () => linear.weight.to('f32'),
    }),
  );
}

/** f32 masters of their own that collect gradients; `pair` stays as it is. */
export function trainablePair(pair: LowRankPair): LowRankPair {
  return { a: masterOf(pair.a), b: masterOf(pair.b) };
}

function masterOf(values: Tensor): Tensor {
  const master = unscoped(() => zeros(values.shape, { dtype: 'f32' }));
  scope(() => copy_(master, values.to('f32')));
  master.requiresGrad = true;
  return master;
}

/** @throws FormatError if a pair does not fit its module. */
export function checkShapes(
  name: string,
  { a, b }: LowRankPair,
  linear: Linear,
  path: string,
): void {
  const [outFeatures, inFeatures] = linear.weight.shape as [number, number];
  if (a.shape[1] !== inFeatures || b.shape[0] !== outFeatures) {
    throw new FormatError(
      `${path}: ${name}: lora_A (r,in)=(${a.shape.join(',')}) and lora_B (out,r)=(${b.shape.join(',')}) ` +
        `do not fit the weight (out,in)=(${outFeatures},${inFeatures})`,
      { path },
    );
  }
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
  return Array.from(model.namedModules())
    .filter(([, module]) => module instanceof Linear)
    .map(([name]) => name);
}

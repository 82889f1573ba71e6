/** The activation functions that configurations name. */
import { UnsupportedError } from '../errors.ts';
import { gelu, relu, silu, tanh } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';

export type Activation = (x: Tensor) => Tensor;

const geluTanh: Activation = (x) => gelu(x, { approximate: 'tanh' });

const kActivations: Readonly<Record<string, Activation>> = {
  gelu: (x) => gelu(x),
  gelu_python: (x) => gelu(x),
  gelu_new: geluTanh,
  gelu_fast: geluTanh,
  gelu_pytorch_tanh: geluTanh,
  relu,
  silu,
  swish: silu,
  tanh,
};

/** The activation function of a name in config.json. @throws UnsupportedError naming those that are known */
export function activation(name: string, { path, key }: { path: string; key: string }): Activation {
  const found = Object.hasOwn(kActivations, name) ? kActivations[name] : undefined;
  if (found !== undefined) return found;
  const known = Object.keys(kActivations).join(', ');
  throw new UnsupportedError(`${path}: ${key} "${name}" is not supported; known: ${known}`);
}

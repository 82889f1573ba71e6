// The public surface: re-exports only.
export * from './autograd.ts';
export * from './errors.ts';
export * from './ops/index.ts';
export * from './runtime.ts';
export {
  type DType,
  enableGrad,
  keep,
  type NestedNumbers,
  noGrad,
  scope,
  Tensor,
  type TensorData,
  type TensorOptions,
  tensor,
} from './tensor.ts';

export * from './gguf.ts';
export { type ResolveOptions, resolveModel } from './hub.ts';
export * from './safetensors.ts';
export type { ReadOptions, TensorFile, TensorInfo } from './tensor_file.ts';

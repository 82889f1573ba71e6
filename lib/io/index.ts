// `balora/io`: safetensors and GGUF files as tensors.
export * from './gguf.ts';
export * from './safetensors.ts';
export type { ReadOptions, TensorFile, TensorInfo } from './tensor_file.ts';

// `balora/io`: readers and writers of tensor files, safetensors and GGUF.
export * from './gguf.ts';
export * from './safetensors.ts';
export type { FileIdentity, ReadOptions, TensorFile, TensorInfo } from './tensor_file.ts';

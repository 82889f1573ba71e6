// `balora/nn`: modules, and the interface by which an adapter is installed on one.
export * from './adapter_hook.ts';
export * from './embedding.ts';
export * from './linear.ts';
export * from './module.ts';
export * from './norm.ts';

// `balora/nn`: modules, and the place at which an adapter hooks one.
export * from './adapter_hook.ts';
export * from './embedding.ts';
export * from './linear.ts';
export * from './module.ts';
export * from './norm.ts';

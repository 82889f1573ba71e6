// `balora/ops`: the ops, as functions of tensors.
export * from './create.ts';
export * from './elementwise.ts';
export * from './in_place.ts';
export * from './indexing.ts';
export * from './linalg.ts';
export * from './linear.ts';
export * from './losses.ts';
export * from './nn.ts';
export * from './norm.ts';
export * from './reduce.ts';
export * from './shape.ts';

export * from './linear.ts';
export * from './nn.ts';
export * from './norm.ts';

export * from './nn.ts';
export * from './norm.ts';

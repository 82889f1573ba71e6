export * from './clip.ts';
export * from './optimizers.ts';
export * from './schedulers.ts';

// `balora/optim`: optimisers, clipping, schedules of the learning rate.
export { Adafactor, type AdafactorOptions } from './adafactor.ts';
export { AdamW, type AdamWOptions } from './adamw.ts';
export * from './clip.ts';
export { LoraFa } from './lora_fa.ts';
export {
  Optimizer,
  type OptimizerParameter,
  type ParameterGroup,
  type StepInput,
} from './optimizer.ts';
export { RiemannianAdamW, type RiemannianOptions } from './riemannian.ts';
export * from './schedulers.ts';
export { Sgd, type SgdOptions } from './sgd.ts';

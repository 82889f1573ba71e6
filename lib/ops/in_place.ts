// Writing in place, as optimisers do. No gradients: a tensor that wants one can be written under noGrad() only, and a
// value that a recorded op saved for its backward is refused there when it has been overwritten. Frozen tensors are refused.
import { ArgumentError } from '../errors.ts';
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor, tensor, unscoped } from '../tensor.ts';

/** x = source, converted to x's dtype. x may be a view, but none that repeats values (expand); source may overlap it. */
export function copy_(x: Tensor, source: Tensor): Tensor {
  native.copyInPlace(x.handle, source.handle);
  return x;
}

/** x = value. x may be a view, but none that repeats values (expand). */
export function fill_(x: Tensor, value: number): Tensor {
  native.fillInPlace(x.handle, value);
  return x;
}

/** x = 0. */
export function zero_(x: Tensor): Tensor {
  return fill_(x, 0);
}

/** x += alpha * source, in x's dtype (which may be wider than the source's). */
export function add_(x: Tensor, source: Tensor, alpha = 1): Tensor {
  native.addInPlace(x.handle, source.handle, alpha);
  return x;
}

/** x *= coefficient, a () f64 tensor that never leaves the device (see clipCoefficient). */
export function scale_(x: Tensor, coefficient: Tensor): Tensor {
  native.scaleInPlace(x.handle, coefficient.handle);
  return x;
}

/** Settings of one {@link adamwStep}. */
export interface AdamwStepOptions {
  /** First moment, like param; zeros before the first step. */
  m: Tensor;
  /** Second moment, like param; zeros before the first step. */
  v: Tensor;
  /** Step (from 1) and learning rate, or both in a tensor as {@link adamwRate} computes them, which a graph reads at every run. */
  step?: number;
  lr?: number;
  rate?: Tensor;
  betas: readonly [number, number];
  eps: number;
  weightDecay: number;
  /** Multiplied into the gradient first: a () f64 tensor. Default 1. */
  coefficient?: Tensor | null;
}

/**
 * Numbers of one step of AdamW: lr, lr / (1 - beta1^step), 1 / sqrt(1 - beta2^step).
 * @throws ArgumentError for a step below 1
 */
export function adamwRate(
  lr: number,
  step: number,
  betas: readonly [number, number],
): Float64Array {
  if (!(step >= 1)) throw new ArgumentError(`adamw_step: step must be >= 1, got ${step}`);
  return Float64Array.of(lr, lr / (1 - betas[0] ** step), 1 / Math.sqrt(1 - betas[1] ** step));
}

/**
 * One AdamW step in place (Loshchilov and Hutter, 2019), decay first: p -= lr*wd*p;
 * p -= lr * mHat / (sqrt(vHat) + eps).
 * @param param f32 or f64, contiguous
 * @param grad of param's shape and dtype
 */
export function adamwStep(param: Tensor, grad: Tensor, options: AdamwStepOptions): void {
  checkKeys('adamwStep', options, 'm v step lr rate betas eps weightDecay coefficient');
  const { m, v, step, lr, betas, eps, weightDecay, coefficient = null } = options;
  let { rate } = options;
  const own = rate === undefined;
  if (rate === undefined) {
    if (lr === undefined || step === undefined) {
      throw new ArgumentError('adamw_step: lr and step, or rate, must be given');
    }
    rate = unscoped(() => tensor(adamwRate(lr, step, betas), { device: param.device }));
  }
  try {
    adamwSteps([{ param, grad, m, v, rate, weightDecay }], { betas, eps, coefficient });
  } finally {
    if (own) rate.dispose();
  }
}

/** One parameter of {@link adamwSteps}. */
export interface AdamwParameter {
  /** f32 or f64, contiguous. */
  param: Tensor;
  /** The gradient, of param's shape and dtype. */
  grad: Tensor;
  /** First moment, like param; zeros before the first step. */
  m: Tensor;
  /** Second moment, like param; zeros before the first step. */
  v: Tensor;
  /** (3) f64, see {@link adamwRate}; parameters may share it. */
  rate: Tensor;
  weightDecay: number;
}

/** Options for all parameters of {@link adamwSteps}. */
export interface AdamwStepsOptions {
  betas: readonly [number, number];
  eps: number;
  /** Multiplied into the gradients first: a () f64 tensor. Default 1. */
  coefficient?: Tensor | null;
}

/** Runs {@link adamwStep} for any number of parameters on one device as one op; a GPU updates 64 of them in a launch. */
export function adamwSteps(
  parameters: readonly AdamwParameter[],
  options: AdamwStepsOptions,
): void {
  checkKeys('adamwSteps', options, 'betas eps coefficient');
  const { betas, eps, coefficient = null } = options;
  native.adamwSteps(
    {
      params: parameters.map(({ param }) => param.handle),
      grads: parameters.map(({ grad }) => grad.handle),
      m: parameters.map(({ m }) => m.handle),
      v: parameters.map(({ v }) => v.handle),
      rates: parameters.map(({ rate }) => rate.handle),
      weightDecays: parameters.map(({ weightDecay }) => weightDecay),
    },
    coefficient?.handle ?? null,
    { beta1: betas[0], beta2: betas[1], eps },
  );
}

/** Settings of one {@link sgdStep}. */
export interface SgdStepOptions {
  lr: number;
  /** Default 0. */
  momentum?: number;
  /** Default 0. */
  dampening?: number;
  /** Added to the gradient as weightDecay * param. Default 0. */
  weightDecay?: number;
  /** Default false; needs momentum and no dampening. */
  nesterov?: boolean;
  /** Momentum buffer, like param; needed with momentum only. */
  buffer?: Tensor | null;
  /** Whether the buffer is empty, so that it becomes the gradient. Default false. */
  first?: boolean;
  /** Multiplied into the gradient first: a () f64 tensor. Default 1. */
  coefficient?: Tensor | null;
}

/**
 * One SGD step in place: buffer = momentum*buffer + (1-dampening)*g; p -= lr*buffer, or lr*(g + momentum*buffer).
 * @param param f32 or f64, contiguous
 * @param grad of param's shape and dtype
 */
export function sgdStep(param: Tensor, grad: Tensor, options: SgdStepOptions): void {
  checkKeys(
    'sgdStep',
    options,
    'lr momentum dampening weightDecay nesterov buffer first coefficient',
  );
  const { lr, momentum = 0, dampening = 0, weightDecay = 0 } = options;
  const { nesterov = false, first = false, buffer = null, coefficient = null } = options;
  native.sgdStep(param.handle, grad.handle, buffer?.handle ?? null, coefficient?.handle ?? null, {
    lr,
    momentum,
    dampening,
    weightDecay,
    nesterov,
    first,
  });
}

/** State and settings of {@link adafactorStep}. */
export interface AdafactorStepOptions {
  /** (..., R) means of the rows' squares; without a column: the whole second moment, like param. Zeros at first. */
  row: Tensor;
  /** (..., C) means of the columns' squares; null for a vector. */
  column: Tensor | null;
  /** First moment, like param; null: none. */
  m: Tensor | null;
  lr: number;
  /** Decay of the first moment. */
  beta1: number;
  /** Decay of the second moment at this step. */
  beta2: number;
  /** Added to the squared gradient. */
  eps: number;
  /** Largest RMS of the update, which is scaled down to it. */
  clip: number;
  weightDecay: number;
  /** Least factor RMS(param) of the rate; null: the rate is not multiplied by it. */
  scaleFloor: number | null;
  /** Multiplied into the gradient first: a () f64 tensor. Default 1. */
  coefficient?: Tensor | null;
}

/**
 * One Adafactor step in place (Shazeer and Stern, 2018; order of operations as in transformers).
 * @param param (..., R, C) or a vector, f32 or f64, contiguous
 * @param grad of param's shape and dtype
 */
export function adafactorStep(param: Tensor, grad: Tensor, options: AdafactorStepOptions): void {
  checkKeys(
    'adafactorStep',
    options,
    'row column m lr beta1 beta2 eps clip weightDecay scaleFloor coefficient',
  );
  const { row, column, m, coefficient = null, scaleFloor, ...rest } = options;
  native.adafactorStep(
    param.handle,
    grad.handle,
    { row: row.handle, column: column?.handle ?? null, m: m?.handle ?? null },
    coefficient?.handle ?? null,
    { ...rest, scaleFloor: scaleFloor ?? -1 },
  );
}

/**
 * The norm of all gradients as one vector, summed in f64 in a fixed order. Values that are not finite show in it as they are.
 * @param kind 2 (default), 1 or 'inf'
 * @returns () f64
 */
export function gradNorm(grads: readonly Tensor[], kind: 1 | 2 | 'inf' = 2): Tensor {
  return new Tensor(
    native.gradNorm(
      grads.map((grad) => grad.handle),
      String(kind),
    ),
  );
}

/**
 * The clipping factor min(1, maxNorm / (norm + 1e-6)) of torch's clip_grad_norm_, computed on the device. A NaN stays NaN.
 * @param norm () f64
 * @returns () f64
 */
export function clipCoefficient(norm: Tensor, maxNorm: number): Tensor {
  return new Tensor(native.clipCoefficient(norm.handle, maxNorm));
}

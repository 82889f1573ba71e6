// Work for the life-time programs: a step that keeps the engine busy for a while, and a small one.
import { crossEntropy, layerNorm, rmsNorm, scope, tensor } from 'balora';

/** A step's parameters and data; deterministic. */
export function makeStep({ rows, columns }) {
  const values = new Float32Array(rows * columns);
  for (let i = 0; i < values.length; ++i) values[i] = ((i * 7919) % 1009) / 250 - 2;
  const targets = Int32Array.from({ length: rows }, (_, n) => (n * 7) % columns);
  const weight = tensor(new Float32Array(columns).fill(1), { requiresGrad: true });
  const bias = tensor(new Float32Array(columns), { requiresGrad: true });
  const x = tensor(values, { shape: [rows, columns] });
  const y = tensor(targets);
  const parameters = [weight, bias];
  /** Forward, backward, gradients dropped; returns the loss, to be disposed by the caller. */
  const step = () =>
    scope(() => {
      const hidden = layerNorm(x, { weight, bias });
      const loss = crossEntropy(rmsNorm(hidden, weight, { eps: 1e-5 }), y);
      loss.backward();
      for (const parameter of parameters) parameter.grad = null;
      return loss;
    });
  return { step, parameters };
}

/** Enqueues about `count` long steps and returns at once. */
export function enqueueLong(count = 20) {
  const { step } = makeStep({ rows: 2048, columns: 4096 });
  for (let i = 0; i < count; ++i) step().dispose();
}

// Work for the programs in this folder: deterministic training of a small network with a frozen layer, its LoRA pair, a norm and
// a cross-entropy, by AdamW. It runs on the device that BALORA_TEST_DEVICE names; where that is not the CPU, each step copies a
// tensor to the CPU and back.
import { noGrad, scope, setDefaultDevice, tensor } from 'balora';
import { adamwStep, crossEntropy, linear, matmul, randn, rmsNorm, swiglu, zeros } from 'balora/ops';

const kDevice = process.env.BALORA_TEST_DEVICE ?? 'cpu';
setDefaultDevice(kDevice);

const kRank = 8;
const kAdamw = { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01 };

/** A training step on (rows, width) inputs. A call enqueues it and returns its loss, which the caller disposes of. */
export function makeStep({ rows, width }) {
  const frozen = (shape, seed) => randn(shape, { seed }).freeze();
  const x = randn([rows, width], { seed: 1 });
  const targets = tensor(Int32Array.from({ length: rows }, (_, n) => (n * 7) % width));
  const weight = frozen([width, width], 2);
  const head = frozen([width, width], 3);
  const parameters = [
    randn([kRank, width], { seed: 4, requiresGrad: true }),
    zeros([width, kRank], { requiresGrad: true }),
    tensor(new Float32Array(width).fill(1), { requiresGrad: true }),
  ];
  const [a, b, gain] = parameters;
  const moments = parameters.map(({ shape }) => ({ m: zeros(shape), v: zeros(shape) }));
  let count = 0;
  return () =>
    scope(() => {
      const hidden = linear(x, weight, { lowRank: [{ a, b, scale: 2 }] });
      const back = hidden.to('cpu').to(kDevice);
      const normed = rmsNorm(swiglu(back, x), gain, { eps: 1e-5 });
      const loss = crossEntropy(matmul(normed, head), targets);
      loss.backward();
      ++count;
      noGrad(() => {
        parameters.forEach((parameter, i) => {
          adamwStep(parameter, parameter.grad, { ...moments[i], ...kAdamw, step: count });
          parameter.grad = null;
        });
      });
      return loss;
    });
}

/** Enqueues about a second of work and returns at once. */
export function enqueueLong() {
  const step = makeStep({ rows: 1024, width: 1024 });
  for (let i = 0; i < 40; ++i) step().dispose();
}

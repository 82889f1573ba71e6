// A worker that is nearly always inside the addon, in calls that take and give arrays, call back, fail, or settle with a
// failure, until someone ends it.
import { parentPort } from 'node:worker_threads';
import { customOp, embedding, mul, reshape, scope, tensor } from 'balora';

const x = tensor(Float32Array.of(1, 2, 3, 4, 5, 6), { requiresGrad: true });
const table = reshape(x.detach(), [3, 2]);
const beyond = tensor(Int32Array.of(9));
const squareOp = {
  name: 'square',
  forward: ([value]) => ({ outputs: [mul(value, value)], saved: value }),
  backward: ([dy], value) => [mul(dy, mul(2, value))],
};

async function failLate() {
  const row = embedding(table, beyond);
  try {
    await row.data();
  } catch (error) {
    if (!/index/.test(error.message)) throw error;
    return;
  } finally {
    row.dispose();
  }
  throw new Error('an index beyond the table was taken');
}

parentPort.postMessage('busy');
for (;;) {
  for (let i = 0; i < 100; ++i) {
    scope(() => customOp(squareOp, [reshape(x, [2, 3])])[0].backward(tensor([[1, 1, 1], [1, 1, 1]])));
    x.grad = null;
    try {
      reshape(x, [4, 4]);
    } catch (error) {
      if (!/reshape/.test(error.message)) throw error;
    }
  }
  await Promise.all(Array.from({ length: 20 }, failLate));
}

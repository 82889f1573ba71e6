// Calls that can fail on their way back into JS in every kind of way: they pass arrays, call back, throw, or reject a promise.
import { customOp, scope, tensor } from 'balora';
import { embedding, mul, reshape } from 'balora/ops';

const device = 'cpu'; // also where the program's other work is on another device
const x = tensor(Float32Array.of(1, 2, 3, 4, 5, 6), { requiresGrad: true, device });
const table = reshape(x.detach(), [3, 2]);
const beyond = tensor(Int32Array.of(9), { device });
const ones = tensor(new Float32Array(6).fill(1), { shape: [2, 3], device });

const squareOp = (inBackward) => ({
  name: 'square',
  forward: ([value]) => ({ outputs: [mul(value, value)], saved: value }),
  backward: ([dy], value) => {
    inBackward();
    return [mul(dy, mul(2, value))];
  },
});

/** Runs forward and backward of an op whose backward is JS that the addon calls. */
export function callBack(inBackward = () => {}) {
  try {
    scope(() => customOp(squareOp(inBackward), [reshape(x, [2, 3])])[0].backward(ones));
  } finally {
    x.grad = null;
  }
}

export function failAtOnce() {
  try {
    reshape(x, [4, 4]);
  } catch (error) {
    if (!/reshape/.test(error.message)) throw error;
    return;
  }
  throw new Error('6 elements became 16');
}

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

/** Makes all of these calls for some milliseconds. */
export async function callAndFail() {
  for (let i = 0; i < 100; ++i) {
    callBack();
    failAtOnce();
  }
  await Promise.all(Array.from({ length: 20 }, failLate));
}

// Counts the bytes and tensors that small pieces of code leave behind, and prints them as one line of JSON. The process never
// creates anything else that the garbage collector could free meanwhile.
import { memoryStats, scope, synchronize, tensor } from 'balora';
import { rmsNorm } from 'balora/ops';

const found = {};
async function leaves(name, body) {
  await synchronize();
  const before = memoryStats();
  await body();
  await synchronize();
  const { liveBytes, liveTensors } = memoryStats();
  found[name] = {
    bytes: liveBytes - before.liveBytes,
    tensors: liveTensors - before.liveTensors,
  };
}

// Created before the counting begins, and kept.
const w = tensor(new Float32Array(1000).fill(1));
const shape = [100, 1000];
const x = tensor(new Float32Array(100_000).fill(1), { shape, requiresGrad: true });

await leaves('scope', () => {
  scope(() => {
    tensor(new Float32Array(1000));
    scope(() => tensor([1, 2]));
  });
});
await leaves('scope with one result', () => {
  globalThis.kept = scope(() => scope(() => tensor(new Float32Array(256))));
});
await leaves('a throw in a scope', () => {
  try {
    scope(() => {
      tensor(new Float32Array(1000));
      throw new Error('mine');
    });
  } catch {}
});
await leaves('backward', () => {
  scope(() => {
    rmsNorm(rmsNorm(x, w), w).backward(tensor(new Float32Array(100_000), { shape }));
    x.grad = null;
  });
});
console.log(JSON.stringify(found));

// One op of docs/walks.md, forward and backward, by an addon that counts which lines it executes: walk.mjs NAME. It prints the op's rows
// of opTimes(), and loads the compiled library, since nothing else of the process may be counted.
import { attention, headLosses, linear, randn } from '../../dist/ops/index.js';
import { opTimes, resetOpTimes, synchronize } from '../../dist/runtime.js';
import { tensor } from '../../dist/tensor.js';

const bf16 = (shape, seed) => randn(shape, { seed, dtype: 'bf16' });
const trained = (x) => Object.assign(x, { requiresGrad: true });

const kWalks = {
  nothing() {},
  headLosses() {
    const hidden = trained(bf16([70, 64], 1));
    const { loss } = headLosses({
      ...{ hidden, teacher: bf16([70, 64], 2), head: bf16([1100, 64], 3).freeze() },
      targets: tensor(Int32Array.from({ length: 70 }, (_, i) => (i % 3 ? i : -100))),
      ...{ taskScale: 1, consistencyScale: 1, diversityScale: 1, temperature: 2, entropyTopK: 5 },
    });
    loss.backward();
  },
  linear() {
    const pair = (seed) => ({
      ...{ a: trained(randn([8, 64], { seed })), b: trained(randn([96, 8], { seed: seed + 1 })) },
      ...{ scale: 2, form: 'change' },
    });
    const x = trained(bf16([70, 64], 1));
    const y = linear(x, bf16([96, 64], 2).freeze(), { lowRank: [pair(3)] });
    y.backward(bf16([70, 96], 5));
  },
  attention() {
    const [q, k, v] = [6, 2, 2].map((heads, i) => trained(bf16([96, heads, 64], i)));
    const cuSeqlens = tensor(Int32Array.of(0, 40, 96));
    attention(q, k, v, { cuSeqlens }).backward(bf16([96, 6, 64], 4));
  },
  productInTiles() {
    linear(bf16([200, 300], 1), bf16([170, 300], 2).freeze());
  },
};

const walk = kWalks[process.argv[2]];
await synchronize();
resetOpTimes();
walk();
await synchronize();
console.log(JSON.stringify(opTimes()));

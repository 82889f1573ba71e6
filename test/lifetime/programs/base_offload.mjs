// Trains on a base that is in memory or read from the disk, and prints the losses, a digest of the adapter, and the peak memory of the
// process as JSON.
//
//   node base_offload.mjs '{"model": FOLDER, "dtype": "bf16", "budget": BYTES | null, "rows": 64, "steps": 3, "group": FOLDER | null}'
//
// A budget offloads the base. The process first joins the control group.
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AdapterModel, AutoModelForCausalLM, generate, setNumThreads, Trainer } from 'balora';

const { model: folder, dtype, budget, rows, steps, group } = JSON.parse(process.argv[2]);
if (group !== null) writeFileSync(join(group, 'cgroup.procs'), String(process.pid));
setNumThreads(1);
const model = await AutoModelForCausalLM.fromPretrained(folder, { dtype, baseOffload: budget !== null });
model.gradientCheckpointing = true; // so that gradients do not depend on the plan
const tuned = await AdapterModel.create(model, { r: 2, loraAlpha: 4, initLoraWeights: true });

const batch = (i) => ({
  inputIds: Int32Array.from({ length: rows }, (_, t) => (7919 * (t + rows * i)) % model.vocabSize),
  targets: Int32Array.from({ length: rows }, (_, t) => (2 * t < rows ? -100 : (104729 * t) % model.vocabSize)),
  positions: Int32Array.from({ length: rows }, (_, t) => t),
  cuSeqlens: Int32Array.of(0, rows),
});
const data = {
  fingerprint: 'arithmetic',
  batchCount: () => steps,
  *batches(_, start) {
    for (let i = start; i < steps; i++) yield batch(i);
  },
};
const trainer = new Trainer({
  ...{ tuned, data, maxSteps: steps, learningRate: 0.01, memoryBudget: budget },
  regularizers: {
    ...{ consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02 },
    regularizerSchedule: 'constant',
  },
});
const losses = [];
for await (const { type, record } of trainer.run()) {
  if (type === 'step') losses.push(record.loss);
}
const [{ tokens }] = await generate(tuned, { ids: [1, 2, 3], maxNewTokens: 4 }).result;
const digest = createHash('sha256');
for (const value of Object.values(tuned.state())) digest.update(new Uint8Array((await value.data()).buffer));
const peak = 1024 * Number(/^VmHWM:\s*(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
const stats = model.offload?.stats() ?? null;
console.log(JSON.stringify({ losses, tokens, digest: digest.digest('hex'), peak, stats }));

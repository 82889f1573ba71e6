// Runs the same BA-LoRA training on the CPU and on another device: the same weights (random ones or a model's), adapters from the
// same seed, the same micro-batches. Prints one line of JSON with every term of every step on both devices and the largest relative
// difference; the exit status is 1 where that is larger than the rounding of the dtype explains.
//
//   node bench/cuda/trajectory.mjs --device cuda [--shape tiny|smollm2-135m|... | --model FOLDER] [--dtype f32|bf16] [--steps 6]
import { parseArgs } from 'node:util';
import {
  AdapterModel,
  AutoModelForCausalLM,
  deviceInfo,
  resolveMethod,
  setDefaultDevice,
  Trainer,
} from 'balora';
import { shapeNamed } from '../../build/harness/shapes.js';
import { workloadData } from '../../build/harness/workload_batches.js';

const { values: options } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    shape: { type: 'string', default: 'tiny' },
    model: { type: 'string' },
    dtype: { type: 'string', default: 'f32' },
    steps: { type: 'string', default: '6' },
  },
});
const { shape: shapeName, model: modelPath, dtype } = options;
const kSteps = Number(options.steps);
const kTerms = ['consistency', 'diversity', 'svd'];
/** Relative tolerances. f32: sums in another order, carried through the steps; bf16: each activation is rounded to 2^-9. */
const kTolerance = { f32: 2e-4, bf16: 2e-2 };
/** Tokens per sequence. */
const kLength = 96;
/** Smallest denominator of a relative difference: divergences start at 0. */
const kFloor = 1e-3;

async function trajectory(device) {
  setDefaultDevice(device);
  const model =
    modelPath === undefined
      ? await AutoModelForCausalLM.fromConfig(shapeNamed(shapeName), { dtype, seed: 5 })
      : await AutoModelForCausalLM.fromPretrained(modelPath, { dtype });
  const { vocab_size: vocabulary, max_position_embeddings: most } = model.configJson();
  // The initialisation of plain LoRA: its A has the same values on every device, which singular vectors have not.
  const { adapter, regularizers } = resolveMethod('balora', {
    adapter: { r: 8, loraAlpha: 8, initLoraWeights: true },
  });
  const tuned = await AdapterModel.create(model, adapter);
  const length = Math.min(kLength, most);
  const workload = { data: 'random', batch: 2, length, accumulation: 1 };
  const data = await workloadData(workload, { vocabulary, count: kSteps });
  const trainer = new Trainer({
    ...{
      tuned,
      data: data.source,
      maxSteps: kSteps,
      learningRate: 1e-2,
      lrSchedulerType: 'constant',
    },
    regularizers: {
      ...regularizers,
      consistencySchedule: 'constant',
      regularizerSchedule: 'constant',
    },
  });
  const records = [];
  for await (const event of trainer.run()) {
    if (event.type !== 'step') continue;
    const { taskLoss, terms, gradNorm } = event.record;
    const values = kTerms.map((key) => [key, terms[key].value]);
    records.push({ taskLoss, ...Object.fromEntries(values), gradNorm });
  }
  await data.close();
  tuned.dispose();
  model.dispose();
  return records;
}

const cpu = await trajectory('cpu');
const other = await trajectory(options.device);
let worst = 0;
for (const [i, record] of cpu.entries()) {
  for (const term of Object.keys(record)) {
    const scale = Math.max(Math.abs(record[term]), kFloor);
    worst = Math.max(worst, Math.abs(record[term] - other[i][term]) / scale);
  }
}
const tolerance = kTolerance[dtype];
const passed = worst <= tolerance; // false for a NaN too
const { description } = deviceInfo(options.device);
process.stdout.write(
  `${JSON.stringify({ ...options, description, tolerance, worst, passed, cpu, other })}\n`,
);
process.exitCode = passed ? 0 : 1;

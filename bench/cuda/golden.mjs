// Compares a tiny LLaMA on a device with the values that transformers computed for it (test/fixtures/architectures): hidden
// states, logits, loss and gradients in f32, within the tolerances of the golden file. Prints one line of JSON with the errors of
// the device and of the CPU; the exit status is 1 where the device's error is larger than the file allows.
//
//   node bench/cuda/golden.mjs --device cuda [--golden FOLDER]
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { AutoModelForCausalLM, setDefaultDevice, tensor } from 'balora';
import { crossEntropy } from 'balora/ops';
import { loadSafetensors } from '../../dist/io/safetensors.js';

const kGolden = new URL('../../test/fixtures/architectures/llama-untied-gqa', import.meta.url);
const { values: options } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    golden: { type: 'string', default: fileURLToPath(kGolden) },
  },
});
const folder = options.golden;
const facts = JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8'));

const numbers = async (x) => Array.from(await x.data(), Number);

/** Tensors of a file on the CPU, as plain numbers with their shapes. */
async function read(name) {
  const { tensors } = await loadSafetensors(join(folder, name));
  const entries = Object.entries(tensors).map(async ([key, x]) => {
    const { shape } = x;
    return [key, { shape, values: await numbers(x) }];
  });
  return Object.fromEntries(await Promise.all(entries));
}

/** The padded batch as rows one after the other; row n of it is row rows[n] of the padded outputs. */
function unpadded({ input_ids: ids, attention_mask: mask, labels }) {
  const length = ids.shape[1];
  const rows = mask.values.flatMap((bit, i) => (bit ? [i] : []));
  const ends = Array.from(
    { length: ids.shape[0] + 1 },
    (_, b) => rows.filter((row) => row < b * length).length,
  );
  const last = new Set(ends.map((end) => end - 1));
  return {
    rows,
    inputIds: Int32Array.from(rows, (i) => ids.values[i]),
    positions: Int32Array.from(rows, (i) => i % length),
    cuSeqlens: Int32Array.from(ends),
    targets: Int32Array.from(rows, (i, n) => (last.has(n) ? -100 : labels.values[i + 1])),
  };
}

/** The largest |got - want|, over the real rows. */
function rowError(got, { shape, values }, rows) {
  const width = shape.at(-1);
  return Math.max(
    ...rows.flatMap((row, n) =>
      Array.from({ length: width }, (_, k) =>
        Math.abs(got[n * width + k] - values[row * width + k]),
      ),
    ),
  );
}

/** The largest |got - want| over the largest |want|. */
function relativeError(got, { values }) {
  const scale = Math.max(...values.map(Math.abs));
  return Math.max(...values.map((value, i) => Math.abs(got[i] - value))) / scale;
}

async function errors(device, expected, batch) {
  setDefaultDevice(device);
  const model = await AutoModelForCausalLM.fromPretrained(join(folder, 'model'), {
    trainable: true,
  });
  const parameters = new Map(model.namedParameters());
  for (const parameter of parameters.values()) parameter.requiresGrad = true;
  const hidden = model.forward(batch);
  const logits = model.logits(hidden);
  const loss = crossEntropy(logits, tensor(batch.targets));
  loss.backward();
  const gradients = [];
  for (const [key, want] of Object.entries(expected)) {
    if (!key.startsWith('grad.')) continue;
    const { grad } = parameters.get(key.slice('grad.'.length));
    gradients.push(relativeError(await numbers(grad), want));
  }
  const found = {
    last_hidden_state_abs: rowError(await numbers(hidden), expected.last_hidden_state, batch.rows),
    logits_abs: rowError(await numbers(logits), expected.logits, batch.rows),
    loss_abs: Math.abs((await loss.item()) - facts.loss),
    grad_abs_over_max_abs: Math.max(...gradients),
  };
  model.dispose();
  return found;
}

const expected = await read('expected.safetensors');
const batch = unpadded(await read('inputs.safetensors'));
const cpu = await errors('cpu', expected, batch);
const other = await errors(options.device, expected, batch);
const { tolerance } = facts;
const names = Object.keys(cpu);
const passed = names.every((name) => other[name] < tolerance[name]); // false for a NaN too
const worst = Math.max(...names.map((name) => other[name] / tolerance[name]));
const { device } = options;
const result = { golden: facts.name, device, passed, worst, tolerance, cpu, other };
process.stdout.write(`${JSON.stringify(result)}\n`);
process.exitCode = passed ? 0 : 1;

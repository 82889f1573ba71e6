// Calls the addon's own functions thousands of times: with valid arguments (plausible_arguments.mjs), with one of them replaced
// by a wrong value, and with arbitrary ones of the right type. An error is an accepted result; a crash ends the process, and the
// last printed line is the call that caused it. A function of several tensors that is not in plausible_arguments.mjs is called with
// tensors of one dtype and shape; if none of its calls succeeds, the last line names it, and it needs an entry there.
//
//   node any_calls.mjs SEED COUNT [DEVICE]
//
// BALORA_BINARY can name an addon built with -DBALORA_SANITIZE=address,undefined, which finds more (docs/building.md).
import { mkdtempSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { native } from '../../../dist/native.js';
import { fieldsOf, parametersOf } from '../../support/signatures.mjs';
import { kNames, plausibleArguments } from './plausible_arguments.mjs';
import { choices } from './random.mjs';

const [seed, count, device = 'cpu'] = process.argv.slice(2);
const kMemory = 1 << 28; // limit in bytes: larger allocations are errors
const kPool = 120; // number of tensors to choose from
const kDtypes = ['f32', 'f32', 'bf16', 'f16', 'f64', 'i32', 'i64', 'u8'];
const kExtents = [0, 1, 1, 2, 2, 3, 4, 4, 4, 5, 8, 8, 16, 17, 33, 64];
const kSmall = [0, 0, 1, 1, 1, 2, 2, 3, 4, 8, 16, -1, 0.5, 1e-5, 0.9];
const kLarge = [100, 4096, 2 ** 31 - 1, 2 ** 31, 2 ** 53, 1e300, Number.POSITIVE_INFINITY];
const kNumbers = [...kSmall, ...kLarge, ...kLarge.map((value) => -value), Number.NaN, -(2 ** 63)];
const kOfNoType = [undefined, null, 'text', {}, [], 5, Symbol('symbol'), () => 1];
// Functions that are not called, because they affect all later calls or cannot be undone.
const kLeftOut = new Set([
  ...['abandonWork', 'setErrorFactory', 'setMemoryLimit', 'setNumThreads', 'setDevice', 'setDebug'],
  ...['setGradEnabled', 'setCallSite', 'customNode'],
]);

const { below, pick, chance } = choices(Number(seed));

const folder = mkdtempSync(join(tmpdir(), 'balora-calls-'));
const pool = [];
const opened = []; // files, writers and graphs
let recording = null;

const keep = (handle) => pool.push(handle);
function thin() {
  while (pool.length > kPool) native.dispose(pool.splice(below(pool.length), 1)[0]);
}
const shape = () =>
  Array.from({ length: pick([0, 1, 1, 2, 2, 2, 3, 4]) }, () => (chance(0.01) ? pick(kNumbers) : pick(kExtents)));
const several = (make) => Array.from({ length: pick([0, 1, 1, 2, 3]) }, make);
function anyTensor() {
  if (pool.length > 0 && chance(0.8)) return pick(pool);
  keep(native.cast(native.randomNormal(several(() => pick(kExtents)), 0, 1, 1, 0, 'f32'), pick(kDtypes)));
  return pool.at(-1);
}

/** An arbitrary argument of a type in the spelling of the addon's signatures. */
function anyArgument(name, type) {
  if (chance(0.003)) return pick(kOfNoType);
  if (type.endsWith('| null') && chance(0.5)) return null;
  if (type.startsWith('readonly (') && type.endsWith(')[]')) {
    return several(() => anyArgument(name, type.slice('readonly ('.length, -')[]'.length)));
  }
  if (type.startsWith('{ ')) {
    return Object.fromEntries(fieldsOf(type).map(([field, of]) => [field, anyArgument(field, of)]));
  }
  switch (type) {
    case 'Handle':
    case 'Handle | null':
      return chance(0.01) ? pick(kNumbers) : anyTensor();
    case 'number':
      return chance(0.7) ? pick(kSmall) : pick(kNumbers);
    case 'boolean':
      return chance(0.5);
    case 'DType':
      return pick(kDtypes);
    case 'readonly number[]':
      return shape();
    case 'Uint8Array':
      return new Uint8Array(pick([0, 1, 4, 16, 64, 1024]));
    case 'string':
      if (name === 'path') return join(folder, `${below(3)}.safetensors`);
      if (name === 'device') return pick([device, 'cpu', 'cuda:7', 'of no kind']);
      return pick(kNames);
    case 'unknown':
      return chance(0.9) ? pick(opened) : null;
    default:
      throw new Error(`any_calls.mjs makes no ${type}: add it`);
  }
}

const plausible = {
  ...plausibleArguments(native, { pick, chance, below }, device, keep),
  backward: () => {
    const roots = pool.filter((handle) => native.requiresGrad(handle) && !native.isLeaf(handle));
    const root = roots.length > 0 ? pick(roots) : anyTensor();
    keep(native.randomNormal(native.shapeOf(root), 0, 1, 1, 0, native.dtypeOf(root)));
    return [[root], [pool.at(-1)], chance(0.3)];
  },
};

const isTensor = (type) => type === 'Handle' || type === 'Handle | null';
const isOfTensors = (parameters) => parameters.filter(([, type]) => isTensor(type)).length > 1;

/** Arbitrary arguments, but the tensors among them have the dtype and shape of the first. */
function alikeArguments(parameters) {
  const first = anyTensor();
  const another = () => {
    keep(native.cast(native.randomNormal(native.shapeOf(first), 0, 1, 1, 0, 'f32'), native.dtypeOf(first)));
    return pool.at(-1);
  };
  const values = parameters.map(([name, type]) => (isTensor(type) ? another() : anyArgument(name, type)));
  values[parameters.findIndex(([, type]) => isTensor(type))] = first;
  return values;
}

function argumentsOf({ name }, parameters) {
  const arbitrary = () => parameters.map((parameter) => anyArgument(...parameter));
  if (chance(0.1)) return arbitrary();
  if (!plausible[name]) return isOfTensors(parameters) ? alikeArguments(parameters) : arbitrary();
  const values = plausible[name]();
  const place = below(values.length);
  const [parameter, type] = parameters[place];
  if (type.startsWith('{') && values[place] !== null && chance(0.3)) {
    const [key, fieldType] = pick(fieldsOf(type));
    values[place] = { ...values[place], [key]: anyArgument(key, fieldType) };
  } else if (chance(0.12)) values[place] = anyArgument(parameter, type);
  else if (Array.isArray(values[place]) && chance(0.3)) values[place] = values[place].slice(1);
  return values;
}

function shown(value) {
  if (Array.isArray(value)) return `[${value.map(shown)}]`;
  if (value?.constructor === Object) {
    return `{${Object.entries(value).map(([key, field]) => `${key}: ${shown(field)}`)}}`;
  }
  if (!pool.includes(value)) return typeof value === 'object' ? typeof value : String(value);
  return `${native.dtypeOf(value)}(${native.shapeOf(value)})${native.requiresGrad(value) ? '*' : ''}`;
}

/** Keeps the result of a call: tensors for later calls, and open files, writers and graphs. */
function take({ name, typescript }, result) {
  const type = typescript.slice(typescript.lastIndexOf('): ') + 3);
  if (type.includes('Handle')) [result].flat(2).forEach(keep);
  if (type === 'unknown' && typeof result === 'object') opened.push(result);
  if (type.startsWith('Promise')) result.catch(() => {}); // the next sync reports the error, too
  if (name === 'beginGraph') recording = result;
}

function endRecording() {
  try {
    native.endGraph(recording);
  } catch {
    // The calls of this graph cannot be captured.
  }
  recording = null;
}

native.setDevice(device);
native.setMemoryLimit('cpu', kMemory);
native.setMemoryLimit(device, kMemory);
const rows = native.signatures.filter(({ name }) => !kLeftOut.has(name));
const ops = rows.filter((row) => plausible[row.name] || isOfTensors(parametersOf(row)));
const backward = rows.find(({ name }) => name === 'backward');
const ran = new Set();
for (let i = 0; i < Number(count); ++i) {
  const row = chance(0.3) ? pick(rows) : chance(0.15) ? backward : pick(ops);
  try {
    const values = argumentsOf(row, parametersOf(row));
    writeSync(1, `${row.name} ${values.map(shown).join(' ')}\n`);
    take(row, native[row.name](...values));
    native.synchronizeSync(device);
    ran.add(row.name);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
  }
  thin();
  if (recording !== null && chance(0.2)) endRecording();
  if (i % 50 === 0) await new Promise((resolve) => setImmediate(resolve)); // lets promises settle
}
if (recording !== null) endRecording();
rmSync(folder, { recursive: true });
const never = ops.filter(({ name }) => !ran.has(name)).map(({ name }) => name);
writeSync(1, `${['done; never ran:', ...never].join(' ')}\n`);

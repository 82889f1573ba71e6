/**
 * The merged model as a GGUF file. From a base that is a GGUF file every entry of its metadata is kept, and so is every tensor that
 * neither the adapter nor the type changes; from a Hugging Face folder the metadata are made from its configuration and tokenizer.
 */
import { checkMergeable, mergedBias, mergedWeightWithError } from '../adapters/merged_weights.ts';
import { ArgumentError, fileError } from '../errors.ts';
import {
  GGUF_FILE_TYPES,
  type GgufEntries,
  type GgufTensorSpec,
  type GgufTypedValue,
  GgufWriter,
} from '../io/gguf_writer.ts';
import { GgufFile } from '../io/index.ts';
import { isSameFile, written } from '../io/tensor_file.ts';
import { type GgufLayout, ggufLayoutOf, type Model } from '../models/index.ts';
import { findFiles } from '../models/opened.ts';
import { square, sum } from '../ops/index.ts';
import { synchronize } from '../runtime.ts';
import { computeOwned, type Tensor, tensor } from '../tensor.ts';
import { divergenceOf } from './divergence.ts';
import { folderEntries, folderTensors } from './gguf_folder.ts';
import { FILE_TYPES, staysAsItIs, typeOf } from './gguf_types.ts';
import { writeNewFile } from './output.ts';
import { defineTarget, type ExportInput, hasAdapter, type OutType } from './target.ts';

export const gguf = defineTarget({
  name: 'gguf',
  title: 'the merged model as a GGUF file',
  output: 'file',
  types: ['f16', 'f32', 'bf16', 'q8_0', 'q4_k_m'],
  readers: [
    { program: 'llama.cpp (node-llama-cpp)', read: '3.22.1' },
    { program: 'balora', read: 'this version' },
    { program: 'Ollama', read: null },
  ],
  namesOf: () => [],
  write: writeGguf,
});

/** Where the tensors and the metadata of the file come from. */
interface Plan {
  readonly metadata: GgufEntries;
  readonly tensors: readonly PlannedTensor[];
  close(): void;
}

/** A tensor of the file to be written. */
export interface PlannedTensor extends GgufTensorSpec {
  readonly name: string;
  /** Its values: those of a weight of the model, by its Hugging Face name, or of the base's file as they are stored there. */
  readonly hf: string | null;
  /** The base's file, from which bytes or values are taken; null for a base that is a folder. */
  readonly source: GgufFile | null;
  /** Values that the model has not, such as the factors of a rotary embedding. */
  readonly values?: Float32Array;
}

/** Writes the file. @returns the error of each tensor whose values were rounded */
export async function writeGguf(input: ExportInput, output: string): Promise<readonly string[]> {
  const { tuned, outtype } = input;
  const adapted = hasAdapter(input) ? input.tuned : null;
  if (tuned.model.dtype === 'bf16') {
    throw new ArgumentError(
      'gguf: the base was loaded in bf16, and its weights would be rounded twice; load it in f32 (--dtype f32)',
    );
  }
  if (adapted !== null) checkMergeable(adapted);
  const layout = ggufLayoutOf(tuned.model);
  const found = await findFiles(tuned.model.folder);
  const plan = found.gguf ? filePlan(found.path, input, layout) : folderPlan(input, layout);
  const before = adapted?.enabled ?? false;
  if (adapted !== null) adapted.enabled = true;
  try {
    warnOfRounding(plan, input);
    const write = () => writePlan(plan, { input, layout }, output);
    const errors = await writeNewFile(output, write, input);
    return [...errorLines(errors, outtype), ...(await divergenceLines(input, output))];
  } finally {
    if (adapted !== null) adapted.enabled = before;
    plan.close();
  }
}

/** Writes the tensors of a plan. @returns the errors of those that were rounded */
async function writePlan(
  { tensors, metadata }: Plan,
  context: WriteContext,
  output: string,
): Promise<Rounded[]> {
  const specs = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  const writer = new GgufWriter(output, metadata, specs);
  return written(writer, async () => {
    const errors: Rounded[] = [];
    for (const tensor of tensors) {
      const rounded = await writeTensor(writer, tensor, context);
      if (rounded !== null) errors.push(rounded);
    }
    return errors;
  });
}

function filePlan(
  path: string,
  { tuned: { model }, outtype }: ExportInput,
  layout: GgufLayout,
): Plan {
  const source = GgufFile.open(path);
  try {
    checkUnchanged(source, model);
    const count = source.metadata.get(`${layout.architecture}.block_count`);
    const traits = {
      architecture: layout.architecture,
      layers: Number(count),
      hasOutput: source.tensors.has('output.weight'),
    };
    const hfNames = new Map(
      Array.from(model.namedParameters(), ([hf]) => [layout.nameOf(hf), hf] as const),
    );
    const tensors = Array.from(source.tensors.values(), ({ name, dtype, shape }) => ({
      ...{ name, shape, source, hf: hfNames.get(name) ?? null },
      type: staysAsItIs({ name, shape }) ? dtype : typeOf({ name, shape }, outtype, traits),
    }));
    return { metadata: keptMetadata(source, outtype), tensors, close: () => source.close() };
  } catch (error) {
    source.close();
    throw error;
  }
}

/** Every entry of a file's metadata, with the type of the new file, and without those of a file in parts. */
function keptMetadata(source: GgufFile, outtype: OutType): GgufEntries {
  const entries = new Map<string, GgufTypedValue | Uint8Array>(
    [...source.metadata.keys()]
      .filter((key) => !key.startsWith('split.'))
      .map((key) => [key, source.entry(key)]),
  );
  for (const [key, value] of fileTypeEntries(outtype)) entries.set(key, value);
  return entries;
}

/** The entries about the types of a file. */
function fileTypeEntries(outtype: OutType): [string, GgufTypedValue][] {
  const type = GGUF_FILE_TYPES[FILE_TYPES[outtype]];
  return [
    ['general.file_type', { type: 'UINT32', value: type }],
    ['general.quantization_version', { type: 'UINT32', value: 2 }],
  ];
}

/** Checks that a file is the one that a model was loaded from. @throws FormatError if it was replaced meanwhile */
function checkUnchanged({ path, identity }: GgufFile, { stored }: Model): void {
  const [loaded] = stored ?? [];
  if (loaded !== undefined && isSameFile(loaded.identity, identity)) return;
  throw fileError(
    path,
    'the file has changed since the model was loaded from it',
    'wait until it is complete, and begin anew',
  );
}

function folderPlan({ tuned, tokenizer, outtype, warn }: ExportInput, layout: GgufLayout): Plan {
  const { model } = tuned;
  const entries = folderEntries(model, tokenizer, { layout, warn });
  const tensors = folderTensors(model, layout);
  const layers = entries.get(`${layout.architecture}.block_count`);
  const traits = {
    architecture: layout.architecture,
    layers: Number(layers?.value),
    hasOutput: tensors.some(({ name }) => name === 'output.weight'),
  };
  return {
    metadata: new Map([...entries, ...fileTypeEntries(outtype)]),
    tensors: tensors.map((tensor) => ({
      ...tensor,
      source: null,
      type: staysAsItIs(tensor) ? 'F32' : typeOf(tensor, outtype, traits),
    })),
    close: () => {},
  };
}

/** The types of weights that hold a value without blocks. */
const kPlain: readonly string[] = ['F32', 'F16', 'BF16'];

/** Warns of a base that was quantised before, where weights that are not kept as they are would be rounded once more. */
function warnOfRounding({ tensors }: Plan, { tuned, outtype, warn }: ExportInput): void {
  const before = new Set(
    tensors.flatMap(({ name, source, type, hf }) => {
      const stored = source?.tensors.get(name)?.dtype ?? 'F32';
      const isKept = stored === type && !isChanged(hf, tuned);
      return kPlain.includes(stored) || isKept ? [] : [stored];
    }),
  );
  if (before.size === 0) return;
  const again =
    outtype === 'f32'
      ? 'the file has the values of that rounding'
      : 'they are rounded a second time, by the errors below; if there is an F16 or F32 file of the model, train and export from it';
  warn(
    `the base is quantised (${[...before].sort().join(', ')}), so its weights were rounded once: ${again}`,
  );
}

/** Whether the adapter changes a weight, by its Hugging Face name. */
function isChanged(hf: string | null, tuned: ExportInput['tuned']): boolean {
  if (hf === null || tuned.kind === 'model') return false;
  const { modules, saved } = tuned;
  if (saved?.parameters.some(({ name }) => name === hf) === true) return true;
  return modules.some(({ name }) => hf === `${name}.weight`);
}

/** A tensor whose values were rounded, with its root mean square error against F32, and that relative to its values. */
interface Rounded {
  readonly name: string;
  readonly type: string;
  readonly rmse: number;
  readonly relative: number;
}

interface WriteContext {
  readonly input: ExportInput;
  readonly layout: GgufLayout;
}

/** Writes one tensor, and waits until it is in the file. @returns its error; null for bytes that are the base's own */
async function writeTensor(
  writer: GgufWriter,
  planned: PlannedTensor,
  context: WriteContext,
): Promise<Rounded | null> {
  const { name, type, source } = planned;
  const changed = changedValues(planned, context);
  if (changed === null && source?.tensors.get(name)?.dtype === type) {
    writer.copy(name, source);
    await synchronize();
    return null;
  }
  const values = changed ?? unchangedValues(planned, context);
  const squares = sumOfSquares(values);
  const squaredErrors = writer.write(name, values);
  try {
    const elements = values.size;
    values.dispose();
    const [errors, all] = [await squaredErrors.item(), await squares.item()];
    const rmse = Math.sqrt(errors / elements);
    return rmse === 0 ? null : { name, type, rmse, relative: Math.sqrt(errors / all) };
  } finally {
    squaredErrors.dispose();
    squares.dispose();
  }
}

/** The values of a weight with the adapter, f32, in the file's layout; null for one that the adapter does not change. */
function changedValues(
  { hf }: PlannedTensor,
  { input: { tuned }, layout }: WriteContext,
): Tensor | null {
  if (hf === null || tuned.kind === 'model') return null;
  const at = hf.lastIndexOf('.');
  const [path, attribute] = [hf.slice(0, at), hf.slice(at + 1)];
  const module = tuned.modules.find(({ name }) => name === path);
  const saved = tuned.saved?.parameters.find(({ name }) => name === hf);
  return computeOwned(() => {
    if (saved !== undefined) return layout.valuesOf(hf, saved.tensor).to('f32');
    if (module === undefined) return null;
    if (attribute === 'bias') {
      const bias = mergedBias(module);
      return bias === null ? null : layout.valuesOf(hf, bias).to('f32');
    }
    return layout.valuesOf(hf, mergedWeightWithError(module, 'f32').weight).to('f32');
  });
}

/** The values of a weight that the adapter does not change, f32: as the base's file holds them, or in the file's layout. */
function unchangedValues(
  { name, hf, source, values }: PlannedTensor,
  { input: { tuned }, layout }: WriteContext,
): Tensor {
  return computeOwned(() => {
    if (values !== undefined) return tensor(values);
    if (source !== null) return source.read(name, { checkFinite: true });
    const [, weight] = Array.from(tuned.model.namedParameters()).find(
      ([parameter]) => parameter === hf,
    ) as [string, Tensor];
    return layout.valuesOf(hf as string, weight).to('f32');
  });
}

const sumOfSquares = (values: Tensor): Tensor => computeOwned(() => sum(square(values)));

/** Characters of a text of which tokens are made: more than {@link divergenceOf} uses. */
const kMostText = 2 ** 15;

/** A line with the divergence on a text, where one is given. */
async function divergenceLines(
  { tuned, tokenizer, klText }: ExportInput,
  path: string,
): Promise<string[]> {
  if (klText === null) return [];
  const { kl, tokens } = await divergenceOf(
    tuned.model,
    path,
    tokenizer.encode(klText.slice(0, kMostText)),
  );
  return [`mean KL from F32 on ${tokens} tokens of the text: ${kl.toExponential(2)} nats a token`];
}

/** The errors as lines for the user: those of each tensor, the largest in proportion first. */
function errorLines(errors: readonly Rounded[], outtype: OutType): string[] {
  if (errors.length === 0) return [`${FILE_TYPES[outtype]}: no value was rounded`];
  const sorted = [...errors].sort((a, b) => b.relative - a.relative);
  const width = Math.max(...errors.map(({ name }) => name.length));
  return [
    `${FILE_TYPES[outtype]}: root mean square error of each tensor against F32, and in proportion to its values`,
    ...sorted.map(
      ({ name, type, rmse, relative }) =>
        `${name.padEnd(width)}  ${type.padEnd(4)}  ${rmse.toExponential(2)}  ${(100 * relative).toPrecision(2)} %`,
    ),
  ];
}

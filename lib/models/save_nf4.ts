/** Writing of a model whose linear weights are quantised to NF4, as transformers writes one that bitsandbytes has quantised. */
import { join } from 'node:path';
import { UnsupportedError } from '../errors.ts';
import {
  dynamicMap,
  fourBitCode,
  fourBitWeight,
  kBlockSize,
  kNestedBlockSize,
  quantizeAbsmax,
  quantizeNf4,
} from '../io/blocks.ts';
import { makeFolder, writeFileAtomic } from '../io/files.ts';
import { SafetensorsWriter, type TensorSpec } from '../io/index.ts';
import { SINGLE_WEIGHTS } from '../io/model_folder.ts';
import { written } from '../io/tensor_file.ts';
import { Conv1D, Linear } from '../nn/index.ts';
import { div, reshape, sqrt, square, sub, sum } from '../ops/index.ts';
import { synchronize } from '../runtime.ts';
import { type DType, noGrad, scope, type Tensor, tensor } from '../tensor.ts';
import { DTYPE_NAMES, type Model } from './model.ts';

/** Options of {@link saveNf4}. */
export interface Nf4Options {
  /** Elements of a block, even. Default 64. */
  readonly blockSize?: number;
  /** Whether the factors of the blocks are quantised to 8 bits, too (double quantisation). Default false. */
  readonly doubleQuant?: boolean;
}

/** The number of tensors that were quantised, and the largest relative error of one in the Frobenius norm. */
export interface Nf4Result {
  readonly quantized: number;
  readonly error: number;
}

/**
 * Writes a model: the weights of its linears but for the head as NF4, with codes and factors that are bitsandbytes' bit for bit, all
 * other tensors in the model's dtype.
 * @throws UnsupportedError for weights that are stored as (in,out), NativeError with sizes when the disk is full
 */
export async function saveNf4(
  model: Model,
  folder: string,
  options: Nf4Options = {},
): Promise<Nf4Result> {
  const weights = quantizedWeights(model);
  const parameters = [...model.namedParameters()];
  const states = new Map<string, WeightState>();
  const specs: Record<string, TensorSpec> = {};
  for (const [name, weight] of parameters) {
    const { dtype, shape, size } = weight;
    if (!weights.has(weight)) {
      specs[name] = { dtype, shape };
      continue;
    }
    const state = await stateOf(weight, options);
    states.set(name, state);
    Object.assign(specs, partSpecs(name, size, state));
  }
  await makeFolder(folder);
  const writer = new SafetensorsWriter(join(folder, SINGLE_WEIGHTS), specs, { format: 'pt' });
  let worst = 0;
  await written(writer, async () => {
    for (const named of parameters) {
      const state = states.get(named[0]);
      if (state === undefined) writer.write(...named);
      else {
        const error = scope(() => noGrad(() => writeParts(writer, named, state)));
        worst = Math.max(worst, await error.item());
        error.dispose();
      }
      await synchronize();
    }
  });
  await writeFileAtomic(join(folder, 'config.json'), configOf(model, options));
  return { quantized: states.size, error: worst };
}

/** The weights of linears that are quantised: transformers leaves the head as it is. */
function quantizedWeights(model: Model): ReadonlySet<Tensor> {
  const weights = new Set<Tensor>();
  for (const [path, module] of model.namedModules()) {
    if (!(module instanceof Linear) || model.headPaths.includes(path)) continue;
    if (module instanceof Conv1D) {
      throw new UnsupportedError(
        `quantize: ${path} is stored as (in,out), which is not written in blocks; export the model as GGUF with an outtype such as q8_0`,
      );
    }
    weights.add(module.weight);
  }
  return weights;
}

/** The form of a quantised weight. */
interface WeightState {
  /** The form as JSON. */
  readonly json: Uint8Array<ArrayBuffer>;
  readonly blockSize: number;
  /** The mean of the factors of the blocks, which double quantisation subtracts; null: without that. */
  readonly offset: number | null;
}

/** The tensors that stand for a quantised weight, under bitsandbytes' names. */
function partSpecs(
  name: string,
  size: number,
  { json, blockSize, offset }: WeightState,
): Record<string, TensorSpec> {
  const blocks = Math.ceil(size / blockSize);
  const nested: Record<string, TensorSpec> = {
    [`${name}.nested_absmax`]: { dtype: 'f32', shape: [Math.ceil(blocks / kNestedBlockSize)] },
    [`${name}.nested_quant_map`]: { dtype: 'f32', shape: [dynamicMap().length] },
  };
  return {
    [name]: { dtype: 'u8', shape: [Math.ceil(size / 2), 1] },
    [`${name}.absmax`]: { dtype: offset === null ? 'f32' : 'u8', shape: [blocks] },
    [`${name}.quant_map`]: { dtype: 'f32', shape: [fourBitCode('NF4').length] },
    ...(offset !== null && nested),
    [`${name}.${kStateKey}`]: { dtype: 'u8', shape: [json.length] },
  };
}

/** The key under which the form of a 4-bit weight stands, behind the weight's name. */
const kStateKey = 'quant_state.bitsandbytes__nf4';

/** Writes the parts of a weight. @returns the relative error of its values, () */
function writeParts(
  writer: SafetensorsWriter,
  [name, weight]: readonly [string, Tensor],
  { json, blockSize, offset }: WeightState,
): Tensor {
  const host = weight.to('cpu');
  const { packed, absmax } = quantizeNf4(host, blockSize);
  const write = (part: string, given: Tensor): void => writer.write(`${name}.${part}`, given);
  writer.write(name, reshape(packed, [packed.size, 1]));
  write('quant_map', tensor(Float32Array.from(fourBitCode('NF4'))));
  write(kStateKey, tensor(json));
  const options = { name, shape: weight.shape, dtype: 'f32' as DType, checkFinite: false };
  const parts = { type: 'NF4' as const, blockSize, packed };
  let values: Tensor;
  if (offset !== null) {
    const { codes, nested } = quantizeAbsmax(absmax);
    const map = tensor(Float32Array.from(dynamicMap()), { device: 'cpu' });
    write('absmax', codes);
    write('nested_absmax', nested);
    write('nested_quant_map', map);
    const factors = { absmax: nested, map, blockSize: kNestedBlockSize, offset };
    values = fourBitWeight({ ...parts, absmax: codes, nested: factors }, options);
  } else {
    write('absmax', absmax);
    values = fourBitWeight({ ...parts, absmax }, options);
  }
  const exact = host.to('f32');
  return sqrt(div(sum(square(sub(values.to('f32'), exact))), sum(square(exact))));
}

/** The mean of the factors of a weight's blocks, which double quantisation subtracts. */
async function offsetOf(weight: Tensor, blockSize: number): Promise<number> {
  const offset = scope(() =>
    noGrad(() => quantizeAbsmax(quantizeNf4(weight.to('cpu'), blockSize).absmax).offset),
  );
  const value = await offset.item();
  offset.dispose();
  return value;
}

/** The form that a weight gets. */
async function stateOf(
  weight: Tensor,
  { blockSize = kBlockSize, doubleQuant = false }: Nf4Options,
): Promise<WeightState> {
  const { dtype, shape } = weight;
  const offset = doubleQuant ? await offsetOf(weight, blockSize) : null;
  const nested = {
    nested_blocksize: kNestedBlockSize,
    nested_dtype: DTYPE_NAMES.f32,
    nested_offset: offset,
  };
  const state = { quant_type: 'nf4', blocksize: blockSize, dtype: DTYPE_NAMES[dtype], shape };
  return {
    json: new TextEncoder().encode(
      JSON.stringify(offset === null ? state : { ...state, ...nested }),
    ),
    blockSize,
    offset,
  };
}

/** config.json with the settings by which transformers loads the weights. */
function configOf(model: Model, { doubleQuant = false }: Nf4Options): string {
  const json = {
    ...model.configJson(),
    quantization_config: {
      _load_in_4bit: true,
      _load_in_8bit: false,
      bnb_4bit_compute_dtype: DTYPE_NAMES[model.dtype],
      bnb_4bit_quant_storage: 'uint8',
      bnb_4bit_quant_type: 'nf4',
      bnb_4bit_use_double_quant: doubleQuant,
      llm_int8_skip_modules: null,
      load_in_4bit: true,
      load_in_8bit: false,
      quant_method: 'bitsandbytes',
    },
  };
  return `${JSON.stringify(json, null, 2)}\n`;
}

/**
 * Checkpoints that bitsandbytes has quantised, as transformers writes them: 4-bit weights (NF4, FP4) whose parts stand beside them
 * under `<weight>.absmax` and its like, and int8 weights with `<module>.SCB`. A tensor is quantised where its parts are there; the
 * lists of modules in the configuration say nothing more. Formats: QuantState.as_dict of bitsandbytes/functional.py, Linear8bitLt of
 * bitsandbytes/nn/modules.py.
 */
import { z } from 'zod';
import { getDefaultDevice, withDevice } from '../device.ts';
import { FormatError, UnsupportedError } from '../errors.ts';
import { type FourBitType, fourBitWeight, int8Weight } from '../io/blocks.ts';
import { shown } from '../shown.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import type { HfWeights } from './hf_weights.ts';
import type { StoredBlocks, WeightReadOptions, WeightSource } from './weights.ts';

/** The key of config.json that says that a checkpoint is quantised. */
const kConfigKey = 'quantization_config';

/**
 * The configuration without what bitsandbytes added to it.
 * @throws UnsupportedError for the configuration of another library
 */
export function withoutQuantization(
  json: Record<string, unknown>,
  path: string,
): Record<string, unknown> {
  const { [kConfigKey]: given, ...rest } = json;
  if (given === null || typeof given !== 'object') return json;
  const { quant_method: method } = given as Record<string, unknown>;
  if (method === undefined) return json; // refused as a key that is not understood
  if (method === 'bitsandbytes') return rest;
  throw new UnsupportedError(
    `${path}: ${kConfigKey}.quant_method ${shown(method)} is not supported; known: bitsandbytes`,
  );
}

const kQuantState = /^(.+)\.quant_state\.bitsandbytes__(nf4|fp4)$/;
const kScales = /^(.+)\.SCB$/;
/** The only order of the elements of an int8 weight that is known: by rows. */
const kRowMajor = 0;

const kDTypes = ['float32', 'bfloat16', 'float16'] as const;
const count = z.int().positive();
const kState = z.strictObject({
  quant_type: z.enum(['nf4', 'fp4']),
  blocksize: count,
  // The type of the weight before it was quantised, which changes nothing here.
  dtype: z.enum(kDTypes),
  shape: z.array(count).min(1),
  nested_blocksize: count.optional(),
  nested_dtype: z.literal('float32').optional(),
  nested_offset: z.number().optional(),
});

/** A 4-bit weight as its quant_state describes it. */
interface FourBit {
  readonly kind: 'four-bit';
  readonly type: FourBitType;
  readonly blockSize: number;
  readonly shape: readonly number[];
  readonly code: readonly number[];
  /** Null without double quantisation. */
  readonly nested: { readonly blockSize: number; readonly offset: number } | null;
}

interface Int8 {
  readonly kind: 'int8';
  readonly shape: readonly number[];
  readonly scales: string;
}

/** A checkpoint whose quantised weights have the shapes that their values have. */
class QuantizedWeights implements WeightSource {
  readonly shapes: ReadonlyMap<string, readonly number[]>;

  constructor(
    private readonly source: HfWeights,
    private readonly quantized: ReadonlyMap<string, FourBit | Int8>,
    parts: ReadonlySet<string>,
  ) {
    this.shapes = new Map(
      [...source.shapes]
        .filter(([name]) => !parts.has(name))
        .map(([name, shape]) => [name, quantized.get(name)?.shape ?? shape]),
    );
  }

  get path(): string {
    return this.source.path;
  }

  get files(): HfWeights['files'] {
    return this.source.files;
  }

  read(name: string, options: WeightReadOptions): Tensor {
    if (!this.quantized.has(name)) return this.source.read(name, options);
    return scope(() => noGrad(() => this.readBlocks(name, options).to(options.dtype)));
  }

  aliases(name: string, options: WeightReadOptions): boolean {
    return !this.quantized.has(name) && this.source.aliases(name, options);
  }

  blocks(name: string): StoredBlocks | null {
    const weight = this.quantized.get(name);
    if (weight === undefined) return null;
    const elements = weight.shape.reduce((product, extent) => product * extent, 1);
    if (weight.kind === 'int8') return { form: 'int8', bytes: elements };
    const absmax = Math.ceil(elements / weight.blockSize) * (weight.nested === null ? 4 : 1);
    return { form: weight.type, bytes: Math.ceil(elements / 2) + absmax };
  }

  readBlocks(name: string, options: WeightReadOptions, transposed = false): Tensor {
    if (transposed) {
      throw new UnsupportedError(
        `${this.path}: ${name} is stored as (in,out) in blocks, which are not turned; leave baseFormat (--base-format) out`,
      );
    }
    const device = getDefaultDevice();
    // Its values are checked where they need no way back from a device.
    return scope(() => withDevice('cpu', () => this.#readOnCpu(name, options)).to(device));
  }

  #readOnCpu(name: string, { dtype, checkFinite }: WeightReadOptions): Tensor {
    const weight = this.quantized.get(name) as FourBit | Int8;
    const { source } = this;
    const { shape } = weight;
    const options = { name: `${this.path}: ${name}`, shape, dtype, checkFinite };
    const f32 = (part: string): Tensor =>
      source.read(part, { dtype: 'f32', checkFinite, share: true });
    const bytes = source.readBytes(name);
    if (weight.kind === 'int8') return int8Weight(bytes, f32(weight.scales), options);
    const { type, blockSize, code, nested } = weight;
    const parts = { type, blockSize, code, packed: bytes };
    if (nested === null) {
      return fourBitWeight({ ...parts, absmax: f32(`${name}.absmax`) }, options);
    }
    return fourBitWeight(
      {
        ...parts,
        absmax: source.readBytes(`${name}.absmax`),
        nested: {
          ...nested,
          absmax: f32(`${name}.nested_absmax`),
          map: f32(`${name}.nested_quant_map`),
        },
      },
      options,
    );
  }

  close(): void {
    this.source.close();
  }
}

/**
 * A source that gives the values of weights that bitsandbytes has quantised; `source` itself where there are none.
 * @throws FormatError for parts that are missing or do not fit, UnsupportedError for a form that is not known
 */
export async function quantizedWeights(source: HfWeights): Promise<WeightSource> {
  const quantized = new Map<string, FourBit | Int8>();
  const parts = new Set<string>();
  for (const name of source.shapes.keys()) {
    const [, weight, suffix] = kQuantState.exec(name) ?? [];
    if (weight !== undefined && suffix !== undefined) {
      if (quantized.has(weight)) throw formatError(source, weight, 'has two quant_states');
      quantized.set(weight, await readFourBit(source, weight, { state: name, suffix, parts }));
    }
    const [, module] = kScales.exec(name) ?? [];
    if (module !== undefined) {
      quantized.set(`${module}.weight`, await readInt8(source, module, parts));
    }
  }
  return quantized.size === 0 ? source : new QuantizedWeights(source, quantized, parts);
}

async function readFourBit(
  source: HfWeights,
  weight: string,
  { state, suffix, parts }: { state: string; suffix: string; parts: Set<string> },
): Promise<FourBit> {
  const stored = parseState(source, state, await bytesOf(source, state));
  const { nested_blocksize, nested_dtype, nested_offset } = stored;
  const isNested = [nested_blocksize, nested_dtype, nested_offset].some((v) => v !== undefined);
  if (isNested && (nested_blocksize === undefined || nested_offset === undefined)) {
    throw formatError(source, state, 'has a part of the nested_ keys only');
  }
  if (stored.quant_type !== suffix) {
    throw formatError(source, state, `has the quant_type ${stored.quant_type}`);
  }
  if (!source.shapes.has(weight)) throw formatError(source, state, `${weight} is not there`);
  const own = ['absmax', 'quant_map', ...(isNested ? ['nested_absmax', 'nested_quant_map'] : [])];
  for (const part of own.map((each) => `${weight}.${each}`)) {
    if (!source.shapes.has(part)) throw formatError(source, state, `${part} is not there`);
    parts.add(part);
  }
  parts.add(state);
  checkAbsmax(source, `${weight}.absmax`, isNested);
  return {
    kind: 'four-bit',
    type: suffix === 'nf4' ? 'NF4' : 'FP4',
    blockSize: stored.blocksize,
    shape: stored.shape,
    code: await valuesOf(source, `${weight}.quant_map`),
    nested: isNested
      ? { blockSize: nested_blocksize as number, offset: nested_offset as number }
      : null,
  };
}

/** Refuses absmax that is not as it was written when the weight was quantised. */
function checkAbsmax(source: HfWeights, name: string, isNested: boolean): void {
  const { dtype, shape } = source.info(name);
  if (dtype === (isNested ? 'U8' : 'F32') && shape.length === 1) return;
  if (dtype === 'BF16' && shape.length === 2) {
    throw new UnsupportedError(
      `${source.path}: ${name} is in bfloat16 and transposed: bitsandbytes rewrites a weight so when it is used for inference on a ` +
        'CPU; save the model again before it is used, or quantise the original',
    );
  }
  throw formatError(
    source,
    name,
    `must be a vector in ${isNested ? 'U8' : 'F32'}, got ${dtype} (${shape.join(',')})`,
  );
}

async function readInt8(source: HfWeights, module: string, parts: Set<string>): Promise<Int8> {
  const weight = `${module}.weight`;
  const scales = `${module}.SCB`;
  const format = `${module}.weight_format`;
  if (!source.shapes.has(weight)) throw formatError(source, scales, `${weight} is not there`);
  const { dtype, shape } = source.info(weight);
  if (dtype !== 'I8' || shape.length !== 2) {
    throw formatError(
      source,
      weight,
      `has ${scales} beside it and must be a matrix in I8, got ${dtype}`,
    );
  }
  if (source.shapes.has(format)) {
    const [order] = await bytesOf(source, format);
    if (order !== kRowMajor) {
      throw new UnsupportedError(
        `${source.path}: ${format} ${order} is not supported; known: ${kRowMajor} (by rows)`,
      );
    }
    parts.add(format);
  }
  parts.add(scales);
  return { kind: 'int8', shape, scales };
}

function parseState(source: HfWeights, name: string, bytes: Uint8Array): z.infer<typeof kState> {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw formatError(source, name, `is not JSON: ${(error as Error).message}`);
  }
  const parsed = kState.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0] as z.core.$ZodIssue;
  throw formatError(source, name, `${issue.path.join('.') || 'it'}: ${issue.message}`);
}

function formatError(source: HfWeights, name: string, message: string): FormatError {
  return new FormatError(`${source.path}: ${name}: ${message}`, { path: source.path });
}

async function bytesOf(source: HfWeights, name: string): Promise<Uint8Array> {
  const bytes = unscoped(() => source.readBytes(name));
  try {
    return (await bytes.data()) as Uint8Array;
  } finally {
    bytes.dispose();
  }
}

async function valuesOf(source: HfWeights, name: string): Promise<number[]> {
  const { dtype, shape } = source.info(name);
  if (dtype !== 'F32') throw formatError(source, name, `must be in F32, got ${dtype}`);
  const bytes = await bytesOf(source, name);
  if (shape.length !== 1) throw formatError(source, name, 'must be a vector');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: bytes.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

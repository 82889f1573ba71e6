/**
 * A LoRA adapter as a GGUF file for llama.cpp and what is built on it. The loader computes delta = alpha / r_t B_t A_t with one alpha
 * for the file and the rank r_t of each B, so each module's own scale is folded into its B. Names and keys: llama.cpp's
 * convert_lora_to_gguf.py and src/llama-adapter.cpp.
 */
import type { PlainPair } from '../adapters/export.ts';
import { UnsupportedError } from '../errors.ts';
import {
  GGUF_FILE_TYPES,
  type GgufTensorSpec,
  type GgufTypedValue,
  GgufWriter,
} from '../io/gguf_writer.ts';
import { written } from '../io/tensor_file.ts';
import { type GgufLayout, ggufLayoutOf, type Model } from '../models/index.ts';
import { mul } from '../ops/index.ts';
import { synchronize } from '../runtime.ts';
import { noGrad, scope } from '../tensor.ts';
import { writeNewFile } from './output.ts';
import { mostFrequent, withPlainLora } from './plain_lora.ts';
import { type AdapterInput, defineAdapterTarget, type OutType } from './target.ts';

const kTypes: Readonly<Partial<Record<OutType, keyof typeof GGUF_FILE_TYPES>>> = {
  f32: 'F32',
  f16: 'F16',
  bf16: 'BF16',
  q8_0: 'Q8_0',
};
const kQ8Block = 32;
const kQuantizationVersion = 2;

export const ggufLora = defineAdapterTarget({
  name: 'gguf-lora',
  title: 'the adapter alone as a GGUF file, for llama.cpp beside its base',
  output: 'file',
  types: ['f32', 'f16', 'bf16', 'q8_0'],
  namesOf: () => [],
  readers: [{ program: 'llama.cpp (node-llama-cpp)', read: '3.22.1' }],
  write: (input, output) =>
    withPlainLora(input.tuned, 'gguf-lora', (modules) => writeLora(modules, input, output)),
});

/** A module's tensors in the file. */
interface StoredModule extends PlainPair {
  /** Its name in the file, such as `blk.0.attn_q.weight`. */
  readonly stored: string;
  /** The factor of B that makes alpha / r the module's scale. */
  readonly factor: number;
}

async function writeLora(
  modules: readonly PlainPair[],
  { tuned: { model }, outtype, overwrite }: AdapterInput,
  output: string,
): Promise<readonly string[]> {
  const layout = ggufLayoutOf(model);
  // The most frequent scale times rank, so that most values of B stay as they are; 0 is for the loader no scale at all.
  const alpha = mostFrequent(modules.map((module) => Math.fround(module.scale * rankOf(module))));
  const stored = modules.map((module) => ({
    ...module,
    stored: nameOf(module.name, layout),
    factor: (module.scale * rankOf(module)) / alpha,
  }));
  const type = kTypes[outtype] as keyof typeof GGUF_FILE_TYPES;
  const specs = new Map<string, GgufTensorSpec>(
    stored.flatMap(({ stored: name, pair: { a, b } }) => [
      [`${name}.lora_a`, { type: typeFor(a.shape, type), shape: a.shape }],
      [`${name}.lora_b`, { type: typeFor(b.shape, type), shape: b.shape }],
    ]),
  );
  const metadata = metadataOf(model, layout, { alpha, type });
  const write = (): Promise<void> => {
    const writer = new GgufWriter(output, metadata, specs);
    return written(writer, async () => {
      for (const module of stored) {
        writeModule(writer, module, layout);
        await synchronize();
      }
    });
  };
  await writeNewFile(output, write, { overwrite });
  return [`${stored.length} modules of rank ${ranksOf(modules)}, alpha ${alpha}, ${type}`];
}

function writeModule(writer: GgufWriter, module: StoredModule, layout: GgufLayout): void {
  const { name, stored, factor, pair } = module;
  scope(() =>
    noGrad(() => {
      const b = layout.rowsOf(`${name}.weight`, pair.b);
      writer.write(`${stored}.lora_a`, pair.a.to('f32'));
      writer.write(`${stored}.lora_b`, (factor === 1 ? b : mul(b.to('f64'), factor)).to('f32'));
    }),
  );
}

/** The name of a module's weight. @throws UnsupportedError where the architecture has no such tensor */
function nameOf(module: string, { nameOf: name, architecture }: GgufLayout): string {
  const found = name(`${module}.weight`);
  if (found !== null) return found;
  throw new UnsupportedError(
    `${module} has no tensor in the GGUF architecture ${architecture}; leave it out of target_modules, or merge the adapter into ` +
      'its base',
  );
}

const rankOf = ({ pair }: PlainPair): number => pair.a.shape[0] as number;

function ranksOf(modules: readonly PlainPair[]): string {
  const ranks = modules.map(rankOf);
  const [least, largest] = [Math.min(...ranks), Math.max(...ranks)];
  return least === largest ? `${least}` : `${least} to ${largest}`;
}

/** The type of a tensor: rows that are no whole blocks become F16, as in llama.cpp's converter. */
function typeFor(shape: readonly number[], type: keyof typeof GGUF_FILE_TYPES): string {
  return type === 'Q8_0' && (shape.at(-1) as number) % kQ8Block !== 0 ? 'F16' : type;
}

function metadataOf(
  { nameOrPath }: Model,
  { architecture }: GgufLayout,
  { alpha, type }: { alpha: number; type: keyof typeof GGUF_FILE_TYPES },
): ReadonlyMap<string, GgufTypedValue> {
  return new Map<string, GgufTypedValue>([
    ['general.architecture', { type: 'STRING', value: architecture }],
    ['general.type', { type: 'STRING', value: 'adapter' }],
    ['general.base_model.count', { type: 'UINT32', value: 1 }],
    ['general.base_model.0.name', { type: 'STRING', value: nameOrPath }],
    ['general.quantization_version', { type: 'UINT32', value: kQuantizationVersion }],
    ['general.file_type', { type: 'UINT32', value: GGUF_FILE_TYPES[type] }],
    ['adapter.type', { type: 'STRING', value: 'lora' }],
    ['adapter.lora.alpha', { type: 'FLOAT32', value: alpha }],
  ]);
}

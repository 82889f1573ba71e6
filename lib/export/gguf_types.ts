/**
 * The type of each tensor in a GGUF file, by llama.cpp's rules (src/llama-quant.cpp): which tensors stay as they are, and the mixture
 * of types behind the name Q4_K_M.
 */
import type { GGUF_FILE_TYPES } from '../io/gguf_writer.ts';
import type { OutType } from './target.ts';

/** llama.cpp's name for the types of a file. */
export const FILE_TYPES: Readonly<Record<OutType, keyof typeof GGUF_FILE_TYPES>> = {
  f32: 'F32',
  bf16: 'BF16',
  f16: 'F16',
  q8_0: 'Q8_0',
  q4_k_m: 'Q4_K_M',
};

/** A tensor of a file. */
interface NamedShape {
  readonly name: string;
  /** Extents, row-major. */
  readonly shape: readonly number[];
}

/** The facts about a file that the types of its tensors depend on. */
export interface FileTraits {
  readonly architecture: string;
  /** Number of layers. */
  readonly layers: number;
  /** Whether the file has a head of its own (output.weight). */
  readonly hasOutput: boolean;
}

/** Whether a tensor keeps its type in every file: vectors, norms, tables of positions, and what is no weight. */
export function staysAsItIs({ name, shape }: NamedShape): boolean {
  return (
    !name.endsWith('weight') ||
    shape.length < 2 ||
    name.includes('_norm.weight') ||
    /^(?:position_embd|token_types)\.weight$/.test(name) ||
    name.includes('ffn_gate_inp.weight') ||
    name.includes('attn_rel_b.weight')
  );
}

const kSuperBlock = 256;
const kBlock = 32;

/** ggml's name for the type of a tensor that does not stay as it is. */
export function typeOf(tensor: NamedShape, outtype: OutType, traits: FileTraits): string {
  const row = tensor.shape.at(-1) as number;
  switch (outtype) {
    case 'f32':
    case 'f16':
    case 'bf16':
      return outtype.toUpperCase();
    case 'q8_0':
      return fitting('Q8_0', row);
    case 'q4_k_m':
      return fitting(mixed(tensor.name, row, traits), row);
  }
}

/** The types that take the place of one whose blocks do not divide a row. */
const kFallbacks: Readonly<Record<string, string>> = { Q4_K: 'Q5_0', Q5_K: 'Q5_1', Q6_K: 'Q8_0' };

function fitting(type: string, row: number): string {
  const found = row % kSuperBlock === 0 ? type : (kFallbacks[type] ?? type);
  return row % kBlock === 0 ? found : 'F16';
}

/** The type in Q4_K_M: more bits for the head, and for the values and the mlp's outputs of some layers. */
function mixed(name: string, row: number, { architecture, layers, hasOutput }: FileTraits): string {
  if (name === (hasOutput ? 'output.weight' : 'token_embd.weight')) {
    return row % kSuperBlock === 0 ? 'Q6_K' : 'Q8_0';
  }
  const [, layer, module] = /^blk\.(\d+)\.(\w+)\.weight$/.exec(name) ?? [];
  if (module === 'attn_qkv') return 'Q5_K';
  if (module !== 'attn_v' && module !== 'ffn_down') return 'Q4_K';
  if (usesMoreBits(Number(layer), layers)) return 'Q6_K';
  // Eight heads of the model of 70 billion parameters share these values, which cost little.
  return module === 'attn_v' && architecture === 'llama' && layers === 80 ? 'Q5_K' : 'Q4_K';
}

function usesMoreBits(layer: number, layers: number): boolean {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2;
}

/** The types of tensors by llama.cpp's rules, checked against files that llama-quantize wrote and against its source. */
import { describe, expect, it } from 'vitest';
import { type FileTraits, staysAsItIs, typeOf } from '../../lib/export/gguf_types.ts';

const kTiedSmall: FileTraits = { architecture: 'llama', layers: 30, hasOutput: false };
const kLarge: FileTraits = { architecture: 'llama', layers: 32, hasOutput: true };

describe('Q4_K_M', () => {
  const of = (name: string, shape: number[], traits: FileTraits) =>
    typeOf({ name, shape }, 'q4_k_m', traits);

  it('has Q6_K for the head, and for values and outputs of the mlp in some layers', () => {
    const more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
    for (let layer = 0; layer < 32; layer++) {
      const type = more.includes(layer) ? 'Q6_K' : 'Q4_K';
      expect(of(`blk.${layer}.attn_v.weight`, [1024, 4096], kLarge), `${layer}`).toBe(type);
      expect(of(`blk.${layer}.ffn_down.weight`, [4096, 11008], kLarge), `${layer}`).toBe(type);
      for (const name of ['attn_q', 'attn_k', 'attn_output', 'ffn_gate', 'ffn_up']) {
        expect(of(`blk.${layer}.${name}.weight`, [4096, 4096], kLarge)).toBe('Q4_K');
      }
    }
    expect(of('output.weight', [32000, 4096], kLarge)).toBe('Q6_K');
    expect(of('token_embd.weight', [32000, 4096], kLarge)).toBe('Q4_K');
    expect(of('token_embd.weight', [32000, 4096], { ...kLarge, hasOutput: false })).toBe('Q6_K');
    expect(of('blk.4.attn_qkv.weight', [9216, 3072], { ...kLarge, architecture: 'phi3' })).toBe(
      'Q5_K',
    );
    expect(of('blk.11.attn_v.weight', [1024, 8192], { ...kLarge, layers: 80 })).toBe('Q5_K');
  });

  it('falls back where rows are no whole blocks', () => {
    // SmolLM2-135M: rows of 576 and 1536.
    expect(of('blk.5.attn_q.weight', [576, 576], kTiedSmall)).toBe('Q5_0');
    expect(of('blk.0.attn_v.weight', [192, 576], kTiedSmall)).toBe('Q8_0');
    expect(of('blk.0.ffn_down.weight', [576, 1536], kTiedSmall)).toBe('Q6_K');
    expect(of('blk.4.ffn_down.weight', [576, 1536], kTiedSmall)).toBe('Q4_K');
    expect(of('token_embd.weight', [49152, 576], kTiedSmall)).toBe('Q8_0');
    expect(of('blk.5.attn_qkv.weight', [576, 576], kTiedSmall)).toBe('Q5_1');
    expect(of('blk.5.attn_q.weight', [40, 40], kTiedSmall)).toBe('F16');
  });
});

describe('the other types', () => {
  it('are the same for all tensors but those that stay', () => {
    const shape = [64, 64];
    for (const [outtype, type] of [
      ['f32', 'F32'],
      ['f16', 'F16'],
      ['bf16', 'BF16'],
      ['q8_0', 'Q8_0'],
    ] as const) {
      expect(typeOf({ name: 'blk.0.attn_v.weight', shape }, outtype, kLarge)).toBe(type);
      expect(typeOf({ name: 'output.weight', shape }, outtype, kLarge)).toBe(type);
    }
    expect(typeOf({ name: 'blk.0.attn_v.weight', shape: [64, 40] }, 'q8_0', kLarge)).toBe('F16');
    const stay: [string, number[]][] = [
      ['blk.0.attn_norm.weight', [64]],
      ['blk.0.attn_q_norm.weight', [4, 64]],
      ['blk.0.attn_q.bias', [64]],
      ['rope_freqs.weight', [32]],
      ['position_embd.weight', [128, 64]],
    ];
    for (const [name, own] of stay) expect(staysAsItIs({ name, shape: own }), name).toBe(true);
    for (const name of ['token_embd.weight', 'blk.0.ffn_up.weight']) {
      expect(staysAsItIs({ name, shape }), name).toBe(false);
    }
  });
});

/** A causal model of a few thousand weights for tests of adapters and the trainer: real modules without attention. */
import type { Batch } from '../../lib/data/collate.ts';
import { CausalLM, type Head } from '../../lib/models/causal_lm.ts';
import type { ModelInputs } from '../../lib/models/model.ts';
import { Linear, LinearGroup, Module, RMSNorm } from '../../lib/nn/index.ts';
import { add, embedding, indexSelect, ones, randn, swiglu } from '../../lib/ops/index.ts';
import { scope, type Tensor } from '../../lib/tensor.ts';
import type { BatchSource } from '../../lib/train/types.ts';

interface TinyOptions {
  vocabulary?: number;
  width?: number;
  layers?: number;
  seed?: number;
  dtype?: 'f32' | 'bf16';
}

class TinyBlock extends Module {
  norm: RMSNorm;
  gate_proj: Linear;
  up_proj: Linear;
  down_proj: Linear;

  constructor(width: number, weight: (out: number, inner: number) => Tensor) {
    super();
    this.norm = new RMSNorm(weight(0, width));
    this.gate_proj = new Linear(weight(2 * width, width));
    this.up_proj = new Linear(weight(2 * width, width));
    this.down_proj = new Linear(weight(width, 2 * width));
  }

  forward(x: Tensor): Tensor {
    const y = this.norm.forward(x);
    const [gate, up] = new LinearGroup([this.gate_proj, this.up_proj]).forward(y) as [
      Tensor,
      Tensor,
    ];
    return add(x, this.down_proj.forward(swiglu(gate, up)));
  }
}

/** A model of the next token given only the current one: rows do not depend on each other. */
export class TinyModel extends CausalLM {
  readonly modelType = 'tiny';
  readonly vocabSize: number;
  embed_tokens: Tensor; // (V,C), tied
  layers: TinyBlock[];
  norm: RMSNorm;

  constructor({
    vocabulary = 17,
    width = 8,
    layers = 2,
    seed = 1,
    dtype = 'f32',
  }: TinyOptions = {}) {
    super({ nameOrPath: 'tiny', folder: '', dtype });
    this.vocabSize = vocabulary;
    let next = seed;
    const weight = (out: number, inner: number): Tensor =>
      scope(() =>
        out === 0
          ? ones([inner], { dtype })
          : randn([out, inner], { seed: next++, deviation: 1 / Math.sqrt(inner), dtype }),
      );
    this.embed_tokens = weight(vocabulary, width);
    this.layers = Array.from({ length: layers }, () => new TinyBlock(width, weight));
    this.norm = new RMSNorm(weight(0, width));
  }

  get head(): Head {
    return { weight: this.embed_tokens, softcap: 0 };
  }

  configJson(): Record<string, unknown> {
    return { model_type: 'tiny' };
  }

  protected hidden({ ids, wanted }: ModelInputs): Tensor {
    let x = embedding(this.embed_tokens, ids);
    for (const layer of this.layers) x = layer.forward(x);
    return this.norm.forward(wanted === null ? x : indexSelect(x, wanted));
  }
}

/** Micro-batches of a language that can be learned: each token has a fixed successor. */
export function tinyBatches({ count = 8, rows = 12, vocabulary = 17 } = {}): Batch[] {
  return Array.from({ length: count }, (_, b) => {
    const inputIds = Int32Array.from({ length: rows }, (_, t) => (5 * b + 3 * t + 1) % vocabulary);
    const half = rows >> 1;
    const next = (t: number): number => ((inputIds[t] as number) * 7 + 2) % vocabulary;
    const targets = Int32Array.from({ length: rows }, (_, t) =>
      t < 1 + (b % 3) || t === half - 1 || t === rows - 1 ? -100 : next(t),
    );
    return {
      inputIds,
      targets,
      positions: Int32Array.from({ length: rows }, (_, t) => (t < half ? t : t - half)),
      cuSeqlens: Int32Array.of(0, half, rows),
    };
  });
}

/** A source with the same batches in every epoch. */
export function tinySource(batches: readonly Batch[]): BatchSource {
  return {
    fingerprint: `tiny ${batches.length}`,
    batchCount: () => batches.length,
    *batches(_, start) {
      yield* batches.slice(start);
    },
  };
}

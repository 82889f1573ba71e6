/**
 * Frozen bases in blocks: what stays in blocks, that a model computes with the values of its blocks, and what cannot be done with them.
 * Numbers of bitsandbytes and of GGUF files are in test/golden/nf4.test.ts.
 */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { fourBitCode, fourBitWeight, nf4Weight, quantizeNf4 } from '../../lib/io/blocks.ts';
import { loadSafetensors, saveSafetensors } from '../../lib/io/index.ts';
import { baseDigest } from '../../lib/models/base_digest.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  type CausalLM,
  type FromConfigOptions,
  type FromPretrainedOptions,
  saveModel,
} from '../../lib/models/index.ts';
import { saveNf4 } from '../../lib/models/save_nf4.ts';
import {
  crossEntropy,
  embedding,
  linear,
  linearGroup,
  matmul,
  mul,
  randn,
  rowNorm,
  sum,
} from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { fixturePath, relativeError } from '../support/fixtures.ts';

const kLlama = fixturePath('architectures/llama-untied-gqa/model');
/** Rounding of sums in f32 in another order. */
const kF32 = 2e-6;

const out = mkdtempSync(join(tmpdir(), 'balora-blocks-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));

const load = (folder: string, options: FromPretrainedOptions = {}): Promise<CausalLM> =>
  AutoModelForCausalLM.fromPretrained(folder, options);

const kBatch = {
  inputIds: Int32Array.of(3, 9, 4, 1, 7, 7, 2, 60, 11),
  positions: Int32Array.of(0, 1, 2, 3, 4, 0, 1, 2, 3),
  cuSeqlens: Int32Array.of(0, 5, 9),
};

const logitsOf = (model: CausalLM): Float64Array =>
  scope(() => noGrad(() => Float64Array.from(values(model.logits(model.forward(kBatch))))));

describe('a weight in blocks', () => {
  // Rows whose length no block divides, and a last block that is short and odd.
  const [o, i, n] = [37, 45, 19];
  const dense = randn([o, i], { seed: 1 });
  const x = randn([n, i], { seed: 2 });

  describe.each(['f32', 'bf16', 'f64'] as const)('%s', (dtype) => {
    const blocks = nf4Weight(dense, 'w', { dtype });
    const decoded = blocks.to(dtype);
    const rows = x.to(dtype);
    const close = (found: Tensor, wanted: Tensor): void => {
      const [a, b] = [values(found), values(wanted)];
      if (dtype === 'bf16') expect(relativeError(a, b)).toBeLessThan(2 ** -8);
      else expect(relativeError(a, b)).toBeLessThan(dtype === 'f64' ? 1e-14 : kF32);
    };

    it('has its shape and the type that it is decoded to', () => {
      expect([blocks.shape, blocks.dtype, blocks.encoding]).toEqual([[o, i], dtype, 'NF4']);
      expect([decoded.shape, decoded.dtype, decoded.encoding]).toEqual([[o, i], dtype, null]);
    });

    it.each([1, 3, 16, 19])('multiplies %i rows and gives their gradient', (count) => {
      const gradient = (weight: Tensor): [Tensor, Tensor] => {
        const input = tensor(values(rows).subarray(0, count * i), { shape: [count, i] }).to(dtype);
        const leaf = input.detach();
        leaf.requiresGrad = true;
        const y = linear(leaf, weight);
        sum(mul(y, y)).backward();
        return [y, leaf.grad as Tensor];
      };
      const [y, dx] = gradient(blocks);
      const [wantedY, wantedDx] = gradient(decoded);
      close(y, wantedY);
      close(dx, wantedDx);
      close(
        y,
        matmul(
          tensor(values(rows).subarray(0, count * i), { shape: [count, i] }).to(dtype),
          decoded,
          { transposeB: true },
        ),
      );
    });

    it('has the norms of its rows, with a part', () => {
      const wide = dtype === 'f64' ? 'f64' : 'f32';
      const part = {
        a: randn([4, i], { seed: 3 }).to(wide),
        b: randn([o, 4], { seed: 4 }).to(wide),
      };
      close(rowNorm(blocks, [part]), rowNorm(decoded, [part]));
    });

    it('shares an input with a dense weight, with biases and parts', () => {
      const wide = dtype === 'f64' ? 'f64' : 'f32';
      const group = (weight: Tensor): Tensor[] =>
        linearGroup(rows, [
          {
            ...{ weight, bias: randn([o], { seed: 5 }).to(dtype) },
            lowRank: [
              { a: randn([4, i], { seed: 3 }).to(wide), b: randn([o, 4], { seed: 4 }).to(wide) },
            ],
          },
          { weight: decoded },
        ]);
      const wanted = group(decoded);
      for (const [at, y] of group(blocks).entries()) close(y, wanted[at] as Tensor);
    });

    it('gives rows by their ids', () => {
      const ids = tensor(Int32Array.of(36, 0, 5, 5));
      expect(values(embedding(blocks, ids))).toEqual(values(embedding(decoded, ids)));
    });
  });

  it('is refused by ops that read values, and is never trained', () => {
    const blocks = nf4Weight(dense, 'w');
    expect(() => mul(blocks, 2)).toThrow(
      /reads values, and a weight \(37,45\) is in blocks \(NF4\)/,
    );
    expect(() => blocks.dataSync()).toThrow(/is in blocks/);
    expect(() => {
      blocks.requiresGrad = true;
    }).toThrow(/is not trained/);
    expect(() => blocks.to('i32')).toThrow(/has float values/);
  });

  it('must have the parts that its shape asks for', () => {
    const { packed, absmax } = quantizeNf4(dense.to('cpu'));
    const options = { name: 'w', shape: [o, i + 1], dtype: 'f32', checkFinite: false } as const;
    expect(() => fourBitWeight({ type: 'NF4', blockSize: 64, packed, absmax }, options)).toThrow(
      /w: the codes must have 851 values in u8/,
    );
    expect(() => quantizeNf4(dense.to('cpu'), 33)).toThrow(/blockSize must be even/);
  });
});

describe('a base in NF4', () => {
  it('has its linears in blocks, and computes with their values', async () => {
    const kept = await load(kLlama, { baseFormat: 'nf4' });
    const forms = new Map(
      Array.from(kept.namedParameters(), ([name, { encoding }]) => [name, encoding]),
    );
    expect(forms.get('model.layers.0.mlp.up_proj.weight')).toBe('NF4');
    expect([...forms.values()].filter((form) => form === 'NF4')).toHaveLength(21);
    expect(forms.get('lm_head.weight')).toBeNull();
    expect(forms.get('model.embed_tokens.weight')).toBeNull();
    const decoded = join(out, 'decoded');
    await saveModel(kept, decoded);
    const dense = await load(decoded);
    expect(relativeError(logitsOf(kept), logitsOf(dense))).toBeLessThan(kF32 * 10);
    const [kept16, dense16] = await Promise.all([
      load(kLlama, { baseFormat: 'nf4', dtype: 'bf16' }),
      load(decoded, { dtype: 'bf16' }),
    ]);
    expect(logitsOf(kept16)).toEqual(logitsOf(dense16));
    // It is another model than that of its files.
    const original = await load(kLlama);
    expect((await baseDigest(kept)).config).not.toBe((await baseDigest(original)).config);
    for (const model of [kept, dense, kept16, dense16, original]) model.dispose();
  });

  it('is written as bitsandbytes writes it, and read again', async () => {
    const original = await load(kLlama);
    const quantized = await load(kLlama, { baseFormat: 'nf4' });
    const wanted = logitsOf(quantized);
    for (const doubleQuant of [false, true]) {
      const folder = join(out, `written-${doubleQuant}`);
      const { quantized: count, error } = await saveNf4(original, folder, { doubleQuant });
      expect(count).toBe(21);
      expect(error).toBeGreaterThan(0.08);
      expect(error).toBeLessThan(0.11);
      const { tensors } = await loadSafetensors(join(folder, 'model.safetensors'));
      const state = JSON.parse(
        Buffer.from(
          (await tensors[`${kUp}.quant_state.bitsandbytes__nf4`]?.data()) as Uint8Array,
        ).toString(),
      ) as Record<string, unknown>;
      expect(state).toMatchObject({ quant_type: 'nf4', blocksize: 64, dtype: 'float32' });
      const [kept, dense] = [await load(folder, { baseFormat: 'nf4' }), await load(folder)];
      expect(relativeError(logitsOf(kept), logitsOf(dense))).toBeLessThan(kF32 * 10);
      const off = relativeError(logitsOf(kept), wanted);
      if (doubleQuant) expect(off).toBeLessThan(0.02);
      else expect(off).toBe(0);
      // Blocks in the files are the model, however they are used.
      expect((await baseDigest(kept)).config).toBe((await baseDigest(dense)).config);
      kept.dispose();
      dense.dispose();
    }
    original.dispose();
    quantized.dispose();
  });

  it('works for weights that are stored as (in,out), which have no such file', async () => {
    const folder = fixturePath('architectures/gpt2/model');
    const model = await load(folder, { baseFormat: 'nf4' });
    const forms = Array.from(model.parameters(), ({ encoding }) => encoding);
    expect(forms.filter((form) => form === 'NF4').length).toBeGreaterThan(0);
    expect(Array.from(logitsOf(model)).every(Number.isFinite)).toBe(true);
    model.dispose();
    const original = await load(folder);
    await expect(saveNf4(original, join(out, 'gpt2'))).rejects.toThrow(/is stored as \(in,out\)/);
    original.dispose();
  });

  it.each([
    ...['pissa', 'olora', 'dora'].map((method) => ({ method, r: 4, loraAlpha: 4 })),
    ...['lora_xs', 'hira', 'miss', 'neat'].map((method) => ({ method, r: 4 })),
  ])('$method starts at the base, and trains as on its values', async (config) => {
    const { method } = config;
    const decoded = join(out, `decoded-${method}`);
    const kept = await load(kLlama, { baseFormat: 'nf4' });
    await saveModel(kept, decoded);
    const dense = await load(decoded);
    const base = logitsOf(kept);
    const found = [];
    for (const model of [kept, dense]) {
      const tuned = await AdapterModel.create(model, config as never);
      expect(relativeError(logitsOf(model), base), 'at the start').toBeLessThan(1e-5);
      const loss = crossEntropy(
        model.logits(model.forward(kBatch)),
        tensor(Int32Array.from(kBatch.inputIds)),
      );
      loss.backward();
      found.push(
        tuned.parameters().map(({ tensor: { grad } }) => (grad === null ? [] : values(grad))),
      );
      tuned.dispose();
    }
    const [blocks, floats] = found as unknown as [ArrayLike<number>[], ArrayLike<number>[]];
    for (const [at, grad] of blocks.entries()) {
      expect(relativeError(grad, floats[at] as ArrayLike<number>)).toBeLessThan(2e-4);
    }
    kept.dispose();
    dense.dispose();
  });

  it('is refused where it cannot be', async () => {
    await expect(load(kLlama, { baseFormat: 'gguf' })).rejects.toThrow(/needs a GGUF file/);
    await expect(load(kLlama, { baseFormat: 'bf16' })).rejects.toThrow(
      /baseFormat bf16 is that of dtype bf16, got dtype f32/,
    );
    await expect(load(kLlama, { baseFormat: 'nf4', trainable: true })).rejects.toThrow(
      /weights in blocks are frozen/,
    );
    await expect(load(kLlama, { baseFormat: 'q4' as never })).rejects.toThrow(/baseFormat/);
    await expect(
      AutoModelForSequenceClassification.fromPretrained(kLlama, {
        numLabels: 2,
        baseFormat: 'nf4',
      }),
    ).rejects.toThrow(/for causal language models/);
    const model = await load(kLlama, { baseFormat: 'nf4' });
    expect(() => new FullModel(model)).toThrow(/full fine-tuning trains every weight/);
    model.dispose();
  });
});

const kUp = 'model.layers.0.mlp.up_proj.weight';
const kState = `${kUp}.quant_state.bitsandbytes__nf4`;
const kWhole = { quant_type: 'nf4', blocksize: 64, dtype: 'float32', shape: [72, 40] };

/** A checkpoint of bitsandbytes with tensors changed. */
async function changed(
  name: string,
  change: (tensors: Record<string, Tensor>) => void,
  config: Record<string, unknown> = {},
): Promise<string> {
  const [from, to] = [join(out, 'whole'), join(out, name)];
  const original = await load(kLlama);
  await saveNf4(original, from);
  original.dispose();
  cpSync(from, to, { recursive: true });
  const { tensors } = await loadSafetensors(join(from, 'model.safetensors'));
  change(tensors);
  await saveSafetensors(join(to, 'model.safetensors'), tensors);
  const json = JSON.parse(readFileSync(join(to, 'config.json'), 'utf8')) as object;
  writeFileSync(join(to, 'config.json'), JSON.stringify({ ...json, ...config }));
  return to;
}
const text = (state: object): Tensor => tensor(new TextEncoder().encode(JSON.stringify(state)));

describe("bitsandbytes' other forms", () => {
  const kCount = 72 * 40;
  const bytes = Uint8Array.from({ length: kCount }, (_, i) => (89 * i + 7) % 256);
  const factors = Float32Array.from({ length: 72 }, (_, i) => 0.5 + i / 64);

  /** Replaces the NF4 of a weight by other tensors. */
  const replaced =
    (by: Record<string, Tensor>) =>
    (tensors: Record<string, Tensor>): void => {
      for (const name of Object.keys(tensors)) if (name.startsWith(kUp)) delete tensors[name];
      Object.assign(tensors, by);
    };

  /** Makes the bytes of the weight int8 in a file's header. */
  function declareSigned(path: string): void {
    const file = readFileSync(path, 'latin1');
    const signed = file.replace(`"${kUp}":{"dtype":"U8"`, `"${kUp}":{"dtype":"I8"`);
    expect(signed).not.toBe(file);
    writeFileSync(path, signed, 'latin1');
  }

  it.each([
    [
      'FP4',
      () => ({
        [kUp]: tensor(bytes.slice(0, kCount / 2), { shape: [kCount / 2, 1] }),
        [`${kUp}.absmax`]: tensor(factors.slice(0, kCount / 64)),
        [`${kUp}.quant_map`]: tensor(Float32Array.from(fourBitCode('FP4'))),
        [kState.replace(/nf4$/, 'fp4')]: text({ ...kWhole, quant_type: 'fp4' }),
      }),
      (i: number) =>
        Math.fround(
          (fourBitCode('FP4')[
            i % 2 === 0 ? (bytes[i >> 1] as number) >> 4 : (bytes[i >> 1] as number) & 15
          ] as number) * (factors[i >> 6] as number),
        ),
    ],
    [
      'int8',
      () => ({
        [kUp]: tensor(bytes, { shape: [72, 40] }),
        [kUp.replace('.weight', '.SCB')]: tensor(factors),
      }),
      (i: number) =>
        ((Int8Array.from(bytes)[i] as number) * (factors[Math.floor(i / 40)] as number)) / 127,
    ],
  ] as [string, () => Record<string, Tensor>, (i: number) => number][])(
    '%s: its values are read, and are not quantised again',
    async (form, parts, expectedAt) => {
      const folder = await changed(form, replaced(parts()));
      if (form === 'int8') declareSigned(join(folder, 'model.safetensors'));
      const model = await load(folder);
      const weight = new Map(model.namedParameters()).get(kUp) as Tensor;
      expect(weight.encoding).toBeNull();
      const expected = Float64Array.from({ length: kCount }, (_, i) => expectedAt(i));
      expect(relativeError(values(weight), expected)).toBeLessThan(2e-7);
      model.dispose();
      await expect(load(folder, { baseFormat: 'nf4' })).rejects.toThrow(
        `${kUp} is quantised already, to ${form}, and would lose more in NF4; leave baseFormat`,
      );
    },
  );
});

describe('a damaged checkpoint of bitsandbytes', () => {
  it.each([
    ['no absmax', (t) => delete t[`${kUp}.absmax`], /absmax is not there/],
    [
      'absmax that inference has rewritten',
      (t) => {
        t[`${kUp}.absmax`] = randn([45, 1], { seed: 6 }).to('bf16');
      },
      /in bfloat16 and transposed: bitsandbytes rewrites a weight so/,
    ],
    [
      'too few codes',
      (t) => {
        t[kUp] = tensor(new Uint8Array(7), { shape: [7, 1] });
      },
      /the codes must have 1440 values in u8, got 7/,
    ],
    [
      'another type than its key',
      (t) => {
        t[kState] = text({ ...kWhole, quant_type: 'fp4' });
      },
      /has the quant_type fp4/,
    ],
    [
      'a key that is not known',
      (t) => {
        t[kState] = text({ ...kWhole, rotated: true });
      },
      /quant_state.*rotated/,
    ],
    [
      'half of a double quantisation',
      (t) => {
        t[kState] = text({ ...kWhole, nested_offset: 1 });
      },
      /a part of the nested_ keys only/,
    ],
    [
      'a form that is no JSON',
      (t) => {
        t[kState] = tensor(Uint8Array.of(1, 2));
      },
      /is not JSON/,
    ],
    [
      'factors that are not finite',
      (t) => {
        const absmax = new Float32Array(45).fill(1);
        absmax[3] = Number.NaN;
        t[`${kUp}.absmax`] = tensor(absmax);
      },
      /is NaN or infinite/,
    ],
  ] as [string, (tensors: Record<string, Tensor>) => void, RegExp][])(
    'with %s is refused',
    async (name, change, message) => {
      const folder = await changed(name, change);
      await expect(load(folder)).rejects.toThrow(message);
      await expect(load(folder, { baseFormat: 'nf4' })).rejects.toThrow(message);
    },
  );

  it('of another library is refused', async () => {
    const config = { quantization_config: { quant_method: 'gptq', bits: 4 } };
    const folder = await changed('gptq', () => {}, config);
    await expect(load(folder)).rejects.toThrow(/quant_method "gptq" is not supported/);
  });
});

describe('fromConfig', () => {
  const config = JSON.parse(readFileSync(join(kLlama, 'config.json'), 'utf8')) as object;
  const make = (options: FromConfigOptions): Promise<CausalLM> =>
    AutoModelForCausalLM.fromConfig({ ...config }, options);

  it('draws weights that stay in NF4, of the values that it draws without', async () => {
    const [blocks, dense] = [await make({ baseFormat: 'nf4' }), await make({})];
    const weights = new Map(dense.namedParameters());
    for (const [name, weight] of blocks.namedParameters()) {
      const isMatrix = /_proj\.weight$/.test(name);
      expect([name, weight.encoding]).toEqual([name, isMatrix ? 'NF4' : null]);
      const drawn = weights.get(name) as Tensor;
      const wanted = isMatrix ? nf4Weight(drawn, name, { dtype: 'f32' }).to('f32') : drawn;
      expect(values(weight.to('f32'))).toEqual(values(wanted));
    }
    expect([blocks.blockFormat, blocks.isQuantizedHere]).toEqual(['nf4', true]);
    expect(blocks.quantizationError).toBeGreaterThan(0.05);
    expect(blocks.quantizationError).toBeLessThan(0.15);
    expect([dense.blockFormat, dense.isQuantizedHere, dense.quantizationError]).toEqual([
      null,
      false,
      null,
    ]);
    for (const model of [blocks, dense]) model.dispose();
  });

  it('refuses what random weights cannot be', async () => {
    await expect(make({ baseFormat: 'gguf' as 'nf4' })).rejects.toThrow(/baseFormat/);
    await expect(make({ baseFormat: 'bf16' })).rejects.toThrow(
      'baseFormat bf16 is that of dtype bf16, got dtype f32',
    );
    await expect(make({ baseFormat: 'nf4', trainable: true })).rejects.toThrow(
      'weights in blocks are frozen',
    );
    const classifier = AutoModelForSequenceClassification.fromConfig(
      { ...config },
      { numLabels: 2, baseFormat: 'nf4' },
    );
    await expect(classifier).rejects.toThrow('baseFormat nf4 is for causal language models');
  });
});

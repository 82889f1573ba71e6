/**
 * SmolLM2-135M in NF4 with double quantisation, of its Q4_1 file decoded, against bitsandbytes' bytes and the reference's losses and training
 * (../shared/golden/nf4/smollm2). The mean of the factors that double quantisation subtracts is PyTorch's, of another order of sums than
 * ours: with the reference's means everything is compared exactly, with our own within the tolerance that the reference has for that.
 */
import { createHash } from 'node:crypto';
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { Batch } from '../../lib/data/collate.ts';
import { dynamicMap, quantizeNf4 } from '../../lib/io/blocks.ts';
import { loadSafetensors, saveSafetensors } from '../../lib/io/safetensors.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { saveNf4 } from '../../lib/models/save_nf4.ts';
import { crossEntropy } from '../../lib/ops/index.ts';
import { AdamW } from '../../lib/optim/index.ts';
import { noGrad, scope, tensor } from '../../lib/tensor.ts';
import { accumulator } from '../support/accumulate.ts';
import { values } from '../support/compare.ts';
import { readJson } from '../support/fixtures.ts';
import { windowOf } from '../support/golden_batch.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

interface Row {
  readonly ids: readonly number[];
  readonly labels: readonly number[];
}

interface Layer {
  readonly packed_sha256: string;
  readonly absmax_q_sha256: string;
  readonly nested_absmax: readonly number[];
  readonly nested_offset: number;
  readonly dequantised_f32_sha256: string;
}

interface Facts {
  readonly rows: readonly Row[];
  readonly q4_1_base: { readonly losses: readonly number[] };
  readonly nf4: {
    readonly layers: Readonly<Record<string, Layer>>;
    readonly nested_offsets_in_order: readonly number[];
    readonly losses: readonly number[];
  };
  readonly train_batches: readonly {
    readonly ids: readonly (readonly number[])[];
    readonly labels: readonly (readonly number[])[];
    readonly attention_mask_lengths: readonly number[];
  }[];
  readonly train_lora: {
    readonly r: number;
    readonly alpha: number;
    readonly lr: number;
    readonly losses: readonly number[];
    readonly grad_norms: readonly number[];
    readonly modules_in_order: readonly string[];
  };
  readonly tolerance: Readonly<Record<string, number>>;
}

const kGolden = 'golden/nf4/smollm2';
const kModel = 'models/smollm2-135m-instruct-gguf';
const kMinutes = 60_000;
const kNested = 256;

const sha256 = (data: Uint8Array | Float32Array): string =>
  createHash('sha256')
    .update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
    .digest('hex');

/** Rows one after the other, without padding. */
function batchOf(rows: readonly Row[]): Batch {
  const ends = [0];
  for (const { ids } of rows) ends.push((ends.at(-1) as number) + ids.length);
  return {
    inputIds: Int32Array.from(rows.flatMap(({ ids }) => ids)),
    positions: Int32Array.from(rows.flatMap(({ ids }) => ids.map((_, t) => t))),
    cuSeqlens: Int32Array.from(ends),
    targets: Int32Array.from(rows.flatMap(({ labels }) => [...labels.slice(1), -100])),
  };
}

function expectNear(found: readonly number[], wanted: readonly number[], bound: number): void {
  expect(found).toHaveLength(wanted.length);
  for (const [i, value] of found.entries()) {
    expect(Math.abs(value - (wanted[i] as number)), `[${i}]`).toBeLessThanOrEqual(bound);
  }
}

/** The codes and factors of absmax less a mean, as bitsandbytes' CPU library rounds them, in f32 step by step. */
function nestedCodes(absmax: Float32Array, offset: number) {
  const { fround, trunc } = Math;
  const map = dynamicMap();
  const codes = new Uint8Array(absmax.length);
  const nested = new Float32Array(Math.ceil(absmax.length / kNested));
  for (let first = 0; first < absmax.length; first += kNested) {
    const block = absmax.subarray(first, first + kNested).map((value) => value - offset);
    const scale = block.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    nested[first / kNested] = scale;
    for (const [i, value] of block.entries()) {
      const x = fround(value / scale);
      const level = trunc(fround(fround(fround(fround(x + 1) * 0.5) * 65535) + 0.5));
      const wanted = fround(fround(fround(level / 65535) * 2) - 1);
      let nearest = 0;
      for (const [code, entry] of map.entries()) {
        if (Math.abs(entry - wanted) < Math.abs((map[nearest] as number) - wanted)) nearest = code;
      }
      codes[first + i] = nearest;
    }
  }
  return { codes, nested };
}

describeShared('SmolLM2 in NF4', [`${kGolden}/expected.json`, kModel], () => {
  const facts = readJson(sharedPath(`${kGolden}/expected.json`)) as Facts;
  const { nf4, tolerance, train_lora: training } = facts;
  const modules = training.modules_in_order;
  const folder = mkdtempSync(join(tmpdir(), 'balora-smollm2-nf4-'));
  const [ours, theirs] = [join(folder, 'ours'), join(folder, 'theirs')];
  afterAll(() => rmSync(folder, { recursive: true }));

  const lossesOf = (model: CausalLM): number[] =>
    facts.rows.map((row) => {
      const batch = batchOf([row]);
      return scope(() =>
        noGrad(() =>
          crossEntropy(model.logits(model.forward(batch)), tensor(batch.targets)).itemSync(),
        ),
      );
    });

  beforeAll(async () => {
    const model = await AutoModelForCausalLM.fromPretrained(sharedPath(kModel));
    expectNear(lossesOf(model), facts.q4_1_base.losses, tolerance.q4_1_losses as number);
    const { quantized } = await saveNf4(model, ours, { doubleQuant: true });
    expect(quantized).toBe(modules.length);
    // The same with the reference's means.
    const weights = new Map(model.namedParameters());
    const { tensors, metadata } = await loadSafetensors(join(ours, 'model.safetensors'));
    for (const [i, module] of modules.entries()) {
      const name = `${module}.weight`;
      const { packed, absmax } = quantizeNf4(weights.get(name) as NonNullable<unknown> as never);
      const offset = nf4.nested_offsets_in_order[i] as number;
      const { codes, nested } = nestedCodes((await absmax.data()) as Float32Array, offset);
      const layer = nf4.layers[module];
      if (layer !== undefined) {
        expect(sha256((await packed.data()) as Uint8Array), name).toBe(layer.packed_sha256);
        expect(sha256(codes), name).toBe(layer.absmax_q_sha256);
        expect(Array.from(nested), name).toEqual(layer.nested_absmax);
        const own = values(tensors[`${name}.absmax`] as never);
        expectNear(Array.from(own), Array.from(codes), 1);
      }
      const key = `${name}.quant_state.bitsandbytes__nf4`;
      const state = JSON.parse(
        new TextDecoder().decode((await tensors[key]?.data()) as Uint8Array),
      ) as { nested_offset: number };
      expect(Math.abs(state.nested_offset / offset - 1), name).toBeLessThan(1e-6);
      const text = JSON.stringify({ ...state, nested_offset: offset });
      Object.assign(tensors, {
        [`${name}.absmax`]: tensor(codes),
        [`${name}.nested_absmax`]: tensor(nested),
        [key]: tensor(new TextEncoder().encode(text)),
      });
      for (const one of [packed, absmax]) one.dispose();
    }
    cpSync(ours, theirs, { recursive: true });
    await saveSafetensors(join(theirs, 'model.safetensors'), tensors, metadata);
    for (const one of Object.values(tensors)) one.dispose();
    model.dispose();
  });

  const load = (path: string): Promise<CausalLM> =>
    AutoModelForCausalLM.fromPretrained(path, { baseFormat: 'nf4' });

  it('has the losses of the blocks', async () => {
    const [own, exact] = [await load(ours), await load(theirs)];
    const weights = new Map(exact.namedParameters());
    for (const [module, layer] of Object.entries(nf4.layers)) {
      const decoded = weights.get(`${module}.weight`)?.to('f32');
      const digest = sha256((await decoded?.data()) as Float32Array);
      expect(digest, module).toBe(layer.dequantised_f32_sha256);
      decoded?.dispose();
    }
    expectNear(lossesOf(exact), nf4.losses, tolerance.nf4_losses as number);
    expectNear(lossesOf(own), nf4.losses, tolerance.nf4_losses_own_mean as number);
    for (const model of [own, exact]) model.dispose();
  });

  it('trains a LoRA as the reference does', { timeout: 20 * kMinutes }, async () => {
    const model = await load(theirs);
    const { r, alpha } = training;
    const tuned = await AdapterModel.create(model, { r, loraAlpha: alpha });
    const state = tuned.state();
    for (const [i, module] of modules.entries()) {
      const { shape } = state[`${module}.lora_A`] as { shape: readonly number[] };
      state[`${module}.lora_A`] = tensor(firstValues(i, shape as [number, number]), { shape });
    }
    tuned.restore(state, 'the formula');
    const optimizer = new AdamW([{ parameters: [...tuned.parameters()], weightDecay: 0 }]);
    const objective = accumulator(tuned);
    const [losses, norms]: number[][] = [[], []];
    for (const { ids, labels, attention_mask_lengths: lengths } of facts.train_batches) {
      const rows = lengths.map((length, b) => ({
        ids: (ids[b] as number[]).slice(0, length),
        labels: (labels[b] as number[]).slice(0, length),
      }));
      const { taskLoss } = await objective.accumulate(windowOf(batchOf(rows)));
      losses?.push(taskLoss);
      const squares = tuned
        .parameters()
        .flatMap(({ tensor: { grad } }) =>
          grad === null ? [] : [values(grad).reduce((sum, value) => sum + value * value, 0)],
        );
      norms?.push(Math.sqrt(squares.reduce((sum, square) => sum + square, 0)));
      optimizer.step({ learningRate: training.lr });
      tuned.zeroGradients();
    }
    expectNear(losses as number[], training.losses, tolerance.train_lora_losses as number);
    const ratios = (norms as number[]).map((norm, i) => norm / (training.grad_norms[i] as number));
    expectNear(
      ratios,
      ratios.map(() => 1),
      tolerance.train_lora_grad_norms_rel as number,
    );
    optimizer.dispose();
    objective.dispose();
    tuned.dispose();
    model.dispose();
  });
});

/** A of a module in the reference's run (r,in), from its place in the list. */
function firstValues(index: number, [r, width]: [number, number]): Float32Array {
  return Float32Array.from({ length: r * width }, (_, at) => {
    const h = Math.imul(1000003 * (index + 1) + at, 2654435761 | 0) >>> 0;
    return ((h / 2 ** 32) * 2 - 1) / Math.sqrt(width);
  });
}

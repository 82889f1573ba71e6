/**
 * Bases in blocks against bitsandbytes' bytes and the values of its formula, and GGUF bases in their blocks: tensors, logits, gradients
 * and steps of an adapter, from blocks that stay in memory and from blocks that are decoded when they are read.
 */
import { createHash } from 'node:crypto';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { dynamicMap, quantizeAbsmax, quantizeNf4 } from '../../lib/io/blocks.ts';
import { GgufFile } from '../../lib/io/index.ts';
import { quantizedWeights } from '../../lib/models/bitsandbytes.ts';
import { HfWeights } from '../../lib/models/hf_weights.ts';
import {
  AutoModelForCausalLM,
  type CausalLM,
  type FromPretrainedOptions,
} from '../../lib/models/index.ts';
import { AdamW } from '../../lib/optim/index.ts';
import { noGrad, scope, tensor } from '../../lib/tensor.ts';
import { accumulator } from '../support/accumulate.ts';
import { values } from '../support/compare.ts';
import { fixturePath, readJson, relativeError } from '../support/fixtures.ts';
import { type GoldenArray, goldenArray, goldenArrays } from '../support/golden.ts';
import { goldenBatch, type PaddedBatch, windowOf } from '../support/golden_batch.ts';
import { logitError } from '../support/golden_logits.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

interface Facts {
  loss: number;
  adapter_loss: number;
  losses: number[];
  dequantised_sha256: Record<string, string>;
  tolerance: {
    logits_max_abs: number;
    loss_abs: number;
    grad_max_abs_over_max_abs: number;
    trajectory_losses_abs: number;
    final_max_abs: number;
  };
}

const kGolden = 'golden/nf4';
const kFamily = 'architectures/llama-untied-gqa';
const kNames = { ids: 'input_ids', mask: 'attention_mask', labels: 'labels' };
const kLearningRate = 1e-3;

const path = (name: string): string => sharedPath(`${kGolden}/${name}`);
const out = mkdtempSync(join(tmpdir(), 'balora-nf4-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));

const numbers = (data: ArrayLike<unknown>): number[] => Array.from(data, Number);
const sha256 = (data: Float32Array): string =>
  createHash('sha256')
    .update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
    .digest('hex');

describeShared('tensors that bitsandbytes has written', [`${kGolden}/reading`], () => {
  copyFileSync(path('reading/tensors.safetensors'), join(out, 'model.safetensors'));
  const expected = goldenArrays(path('reading/expected.safetensors'));
  const cases = readJson(path('reading/cases.json')) as { tensors: Record<string, unknown> };

  it.each(Object.keys(cases.tensors))('%s', async (name) => {
    const source = await quantizedWeights(HfWeights.open(out, ''));
    const { shape, data } = goldenArray(expected, name);
    expect(source.shapes.get(`${name}.weight`)).toEqual(shape);
    const read = { checkFinite: true, share: true };
    const options = { ...read, dtype: 'f32' } as const;
    const decoded = source.read(`${name}.weight`, options);
    expect(decoded.encoding).toBeNull();
    expect(numbers(await decoded.data())).toEqual(numbers(data));
    const kept = source.readBlocks?.(`${name}.weight`, options, false);
    expect(kept?.encoding).toBe(source.blocks?.(`${name}.weight`)?.form);
    expect(kept?.shape).toEqual(shape);
    const again = kept?.to('f32');
    expect(numbers((await again?.data()) ?? [])).toEqual(numbers(data));
    expect(() => kept?.dataSync()).toThrow(/is in blocks/);
    for (const one of [decoded, kept, again]) one?.dispose();
    source.close();
  });
});

describeShared('quantising to NF4', ['golden/quant/nf4.json'], () => {
  const listed = readJson(sharedPath('golden/quant/nf4.json')) as { cases: { name: string }[] };
  const cases = listed.cases.map(({ name }) => name);
  const arrays = goldenArrays(sharedPath('golden/quant/nf4.safetensors'));
  const plain = cases.filter((name) => !name.endsWith('_dq'));

  it.each(plain)('%s: codes and absmax are bitsandbytes’ bit for bit', async (name) => {
    const { shape, data } = goldenArray(arrays, `${name}/x`);
    const x = tensor(data as Float32Array, { shape, device: 'cpu' });
    const { packed, absmax } = quantizeNf4(x);
    expect(numbers(await packed.data())).toEqual(
      numbers(goldenArray(arrays, `${name}/packed`).data),
    );
    expect(numbers(await absmax.data())).toEqual(
      numbers(goldenArray(arrays, `${name}/absmax`).data),
    );
  });

  it.each(plain)('%s: nested values are within the README’s tolerance', async (name) => {
    const x = goldenArray(arrays, `${name}/x`).data as Float32Array;
    const { absmax } = quantizeNf4(tensor(x, { device: 'cpu' }));
    const { codes, nested, offset } = quantizeAbsmax(absmax);
    const wanted = goldenArray(arrays, `${name}_dq/absmax_q`).data;
    const found = numbers(await codes.data());
    const off = found.map((code, i) => Math.abs(code - Number(wanted[i])));
    expect(Math.max(...off)).toBeLessThanOrEqual(1);
    const scale = numbers(goldenArray(arrays, `${name}_dq/absmax_scale`).data);
    expect(relativeError(numbers(await nested.data()), scale)).toBeLessThan(1e-6);
    expect(offset.shape).toEqual([]);
  });

  it('has bitsandbytes’ dynamic map', () => {
    expect(dynamicMap()).toEqual(numbers(goldenArray(arrays, 'dynamic_map').data));
  });
});

/** Both ways in which a base in blocks is used. */
const kForms = (baseFormat: 'nf4' | 'gguf') =>
  [
    ['that stay in memory', { baseFormat }],
    ['that are decoded when they are read', {}],
  ] as [string, FromPretrainedOptions][];

describeShared('checkpoints that bitsandbytes has written', [`${kGolden}/llama`], () => {
  const padded = goldenBatch(goldenArrays(fixturePath(`${kFamily}/inputs.safetensors`)), kNames);
  const expected = goldenArrays(path('llama/expected.safetensors'));
  const facts = readJson(path('llama/expected.json')) as Record<string, Facts>;

  describe.each(['nf4', 'nf4_dq'])('%s', (name) => {
    const fact = facts[name] as Facts;

    it.each(kForms('nf4'))('blocks %s', async (_, options) => {
      const model = await AutoModelForCausalLM.fromPretrained(path(`llama/${name}`), options);
      await checkWeights(model, fact, options.baseFormat === undefined ? null : 'NF4');
      await checkBase(model, { padded, expected, name, fact });
      await checkAdapter(model, fixturePath(`${kFamily}/adapter`), {
        ...{ padded, expected, name, fact },
      });
    });
  });

  const whole = readJson(path('reading/cases.json')) as {
    checkpoints: Record<string, { tolerance: number; quantised_modules: string[] }>;
  };
  const logits = goldenArrays(path('reading/expected_checkpoints.safetensors'));

  it.each(kForms('nf4'))('a list of modules that are left out: blocks %s', async (_, options) => {
    const model = await AutoModelForCausalLM.fromPretrained(path('reading/skip_bf16'), options);
    const { tolerance, quantised_modules: quantised } = whole.checkpoints.skip_bf16 as never as {
      tolerance: number;
      quantised_modules: string[];
    };
    const linears = [...model.namedParameters()].filter(([, { encoding }]) => encoding !== null);
    if (options.baseFormat === 'nf4') {
      // Those that the file leaves out are quantised, too, as nf4 asks for; the head is in blocks since the file has it so.
      expect(linears.map(([one]) => one)).toEqual(
        expect.arrayContaining(quantised.map((one) => `${one}.weight`)),
      );
    } else {
      expect(linears).toEqual([]);
      expect(logitError(model, padded, goldenArray(logits, 'skip_bf16.logits_f64'))).toBeLessThan(
        tolerance,
      );
    }
    model.dispose();
  });

  it('int8', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(path('reading/int8'));
    const { tolerance } = whole.checkpoints.int8 as { tolerance: number };
    expect(logitError(model, padded, goldenArray(logits, 'int8.logits_f64'))).toBeLessThan(
      tolerance,
    );
    model.dispose();
    await expect(
      AutoModelForCausalLM.fromPretrained(path('reading/int8'), { baseFormat: 'nf4' }),
    ).rejects.toThrow(/is quantised already, to int8/);
  });
});

describeShared('GGUF bases', [`${kGolden}/gguf_base`], () => {
  const padded = goldenBatch(goldenArrays(path('gguf_base/inputs.safetensors')), kNames);
  const expected = goldenArrays(path('gguf_base/expected.safetensors'));
  const facts = readJson(path('gguf_base/expected.json')) as Record<string, Facts>;

  describe.each(['q8_0', 'q5_0', 'q4_k', 'q6_k'])('%s', (name) => {
    const fact = facts[name] as Facts;
    const file = path(`gguf_base/${name}.gguf`);

    it.each(kForms('gguf'))('blocks %s', async (_, options) => {
      const model = await AutoModelForCausalLM.fromPretrained(file, options);
      await checkWeights(model, fact, options.baseFormat === undefined ? null : name.toUpperCase());
      await checkBase(model, { padded, expected, name, fact });
      await checkAdapter(model, path('gguf_base/adapter'), { padded, expected, name, fact });
    });

    it('bf16: the same logits bit for bit', async () => {
      const [kept, decoded] = await Promise.all([
        AutoModelForCausalLM.fromPretrained(file, { dtype: 'bf16', baseFormat: 'gguf' }),
        AutoModelForCausalLM.fromPretrained(file, { dtype: 'bf16' }),
      ]);
      expect(logitsOf(kept, padded)).toEqual(logitsOf(decoded, padded));
      kept.dispose();
      decoded.dispose();
    });

    it('a base that is quantised is not quantised again', async () => {
      await expect(
        AutoModelForCausalLM.fromPretrained(file, { baseFormat: 'nf4' }),
      ).rejects.toThrow(`is quantised already, to ${name.toUpperCase()}`);
    });
  });

  it('every type is decoded in parts as it is as a whole', async () => {
    const file = GgufFile.open(fixturePath('quant/kquants.gguf'));
    for (const name of file.tensors.keys()) {
      const kept = file.readBlocks(name);
      const [whole, parts] = [file.read(name, { dtype: 'f32' }), kept.to('f32')];
      expect(numbers(await parts.data()), name).toEqual(numbers(await whole.data()));
      for (const one of [kept, whole, parts]) one.dispose();
    }
    file.close();
  });
});

interface Wanted {
  readonly padded: PaddedBatch;
  readonly expected: Map<string, GoldenArray>;
  readonly name: string;
  readonly fact: Facts;
}

/** Weights in the blocks that are wanted, and the digests of their values. */
async function checkWeights(model: CausalLM, fact: Facts, form: string | null): Promise<void> {
  const parameters = new Map(model.namedParameters());
  for (const [name, digest] of Object.entries(fact.dequantised_sha256)) {
    const weight = parameters.get(name.endsWith('.weight') ? name : `${name}.weight`);
    expect(weight?.encoding, name).toBe(form);
    const decoded = weight?.encoding === null ? weight.detach() : weight?.to('f32');
    expect(sha256((await decoded?.data()) as Float32Array), name).toBe(digest);
    decoded?.dispose();
  }
}

async function checkBase(model: CausalLM, { padded, expected, name, fact }: Wanted): Promise<void> {
  const golden = goldenArray(expected, `${name}.logits_f64`);
  expect(logitError(model, padded, golden)).toBeLessThanOrEqual(fact.tolerance.logits_max_abs);
}

async function checkAdapter(
  model: CausalLM,
  folder: string,
  { padded, expected, name, fact }: Wanted,
): Promise<void> {
  const { tolerance } = fact;
  const tuned = await AdapterModel.fromPretrained(model, folder, { allowOtherBase: true });
  const golden = goldenArray(expected, `${name}.adapter.logits_f64`);
  expect(logitError(model, padded, golden)).toBeLessThanOrEqual(tolerance.logits_max_abs);
  const optimizer = new AdamW([
    { parameters: tuned.parameters().map((one) => ({ ...one })), weightDecay: 0 } as never,
  ]);
  const objective = accumulator(tuned);
  for (const [step, loss] of fact.losses.entries()) {
    const terms = await objective.accumulate(windowOf(padded.batch));
    expect(Math.abs(terms.taskLoss - loss)).toBeLessThanOrEqual(tolerance.trajectory_losses_abs);
    if (step === 0) compareState(tuned, expected, { prefix: `${name}.adapter.grad.`, tolerance });
    if (step === fact.losses.length - 1) break;
    optimizer.step({ learningRate: kLearningRate });
    tuned.zeroGradients();
  }
  compareState(tuned, expected, { prefix: `${name}.adapter.final.`, tolerance });
  optimizer.dispose();
  tuned.dispose();
  model.dispose();
}

/** Gradients, or values, of A and B by the golden names `<prefix><module>.A`. */
function compareState(
  tuned: AdapterModel,
  expected: Map<string, GoldenArray>,
  { prefix, tolerance }: { prefix: string; tolerance: Facts['tolerance'] },
): void {
  const isGradient = prefix.endsWith('grad.');
  const keys = [...expected.keys()].filter((key) => key.startsWith(prefix));
  const found = new Map(tuned.parameters().map((one) => [one.name, one.tensor]));
  for (const key of keys) {
    const parameter = found.get(key.slice(prefix.length).replace(/\.([AB])$/, '.lora_$1'));
    const golden = Float64Array.from(goldenArray(expected, key).data as Float32Array);
    const got = (isGradient ? parameter?.grad : parameter)?.dataSync() as Float32Array;
    if (isGradient) {
      expect(relativeError(got, golden), key).toBeLessThanOrEqual(
        tolerance.grad_max_abs_over_max_abs,
      );
    } else {
      const error = golden.reduce(
        (most, v, i) => Math.max(most, Math.abs((got[i] as number) - v)),
        0,
      );
      expect(error, key).toBeLessThanOrEqual(tolerance.final_max_abs);
    }
  }
}

function logitsOf(model: CausalLM, { batch }: PaddedBatch): Float64Array {
  return scope(() => noGrad(() => Float64Array.from(values(model.logits(model.forward(batch))))));
}

// T5 against transformers: logits, hidden states, losses and gradients of both versions in f32 and f64, an adapter, bf16.
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import { loadSafetensors } from '../../lib/io/safetensors.ts';
import {
  AutoModelForSeq2SeqLM as Auto,
  type Seq2SeqBatch,
  type Seq2SeqLM,
  saveModel,
  type T5ForConditionalGeneration,
} from '../../lib/models/index.ts';
import { crossEntropy, headLosses, matmul, mul, transpose } from '../../lib/ops/index.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { writeGoldenGguf } from '../support/gguf_models.ts';
import { goldenArray, goldenArrays } from '../support/golden.ts';
import {
  type AdapterFacts,
  architecture,
  expectGradients,
  type Golden,
  goldenNames,
  gradientNormError,
  peftGradients,
  relativeError,
  roundToBf16,
  rowError,
} from '../support/golden_checkpoints.ts';
import { unpadded } from '../support/golden_classifiers.ts';
import { kTinyT5, tinySeq2SeqData } from '../support/tiny_seq2seq.ts';

interface Seq2SeqGolden extends Pick<Golden, 'folder' | 'expected' | 'facts'> {
  readonly batch: Seq2SeqBatch;
  readonly targets: Int32Array;
  /** Rows of the padded outputs that are no padding. */
  readonly encoderRows: readonly number[];
  readonly rows: readonly number[];
}

async function readGolden(name: string): Promise<Seq2SeqGolden> {
  const folder = architecture(name);
  const { tensors: inputs } = await loadSafetensors(join(folder, 'inputs.safetensors'));
  const { tensors: expected } = await loadSafetensors(join(folder, 'expected.safetensors'));
  const side = (ids: string, mask: string) =>
    unpadded(
      { ids: numbers(inputs[ids] as Tensor), mask: numbers(inputs[mask] as Tensor) },
      (inputs[ids] as Tensor).shape[1] as number,
    );
  const source = side('input_ids', 'attention_mask');
  const target = side('decoder_input_ids', 'decoder_attention_mask');
  const labels = numbers(inputs.labels as Tensor);
  return {
    folder,
    expected,
    batch: { ...source.batch, decoder: target.batch },
    targets: Int32Array.from(target.rows, (row) => labels[row] as number),
    encoderRows: source.rows,
    rows: target.rows,
    facts: JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')),
  };
}

const numbers = (t: Tensor) => Array.from(t.dataSync(), Number);
const modelOf = ({ folder }: Seq2SeqGolden) => join(folder, 'model');
const lossOf = (model: Seq2SeqLM, { batch, targets }: Seq2SeqGolden) =>
  crossEntropy(model.logits(model.forward(batch)), tensor(targets));
const logitsOf = (model: Seq2SeqLM, { batch }: Seq2SeqGolden) =>
  noGrad(() => model.logits(model.forward(batch)));
/** normError of the gradients of the loss. */
function gradientError(model: Seq2SeqLM, golden: Seq2SeqGolden): number {
  const parameters = new Map(model.namedParameters());
  for (const parameter of parameters.values()) parameter.requiresGrad = true;
  lossOf(model, golden).backward();
  return gradientNormError(golden.expected, (key) => parameters.get(key)?.grad as Tensor);
}
/** The same loss, by the fused head of causal models. */
const fusedLossOf = (model: Seq2SeqLM, { batch, targets }: Seq2SeqGolden) =>
  headLosses({
    hidden: model.forward(batch),
    head: model.head.weight,
    targets: tensor(targets),
    entropyTopK: -1,
    taskScale: 1 / targets.filter((target) => target !== -100).length,
  }).loss;
const folder = mkdtempSync(join(tmpdir(), 'balora-t5-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe.each(goldenNames('seq2seq_lm'))('%s', (name) => {
  it('gives the logits and hidden states of transformers in f32', async () => {
    const golden = await readGolden(name);
    const { tolerance } = golden.facts;
    const model = (await Auto.fromPretrained(modelOf(golden))) as T5ForConditionalGeneration;
    const { last_hidden_state, encoder_last_hidden_state, logits } = golden.expected as Record<
      'last_hidden_state' | 'encoder_last_hidden_state' | 'logits',
      Tensor
    >;
    const encoded = noGrad(() => model.encode(golden.batch));
    expect(rowError(encoded, encoder_last_hidden_state, golden.encoderRows)).toBeLessThan(
      tolerance.last_hidden_state_abs,
    );
    const hidden = noGrad(() => model.forward(golden.batch));
    const { scaledHead, hiddenSize } = model.config;
    const unscaled = mul(hidden, scaledHead ? Math.sqrt(hiddenSize) : 1);
    expect(rowError(unscaled, last_hidden_state, golden.rows)).toBeLessThan(
      tolerance.last_hidden_state_abs,
    );
    expect(rowError(model.logits(hidden), logits, golden.rows)).toBeLessThan(tolerance.logits_abs);
  });

  it('gives the f64 logits in f64, where rounding hides no error', async () => {
    const golden = await readGolden(name);
    const model = await Auto.fromPretrained(modelOf(golden), { dtype: 'f64' });
    const { logits_f64 } = golden.expected;
    expect(rowError(logitsOf(model, golden), logits_f64 as Tensor, golden.rows)).toBeLessThan(1e-9);
  });

  it.each([false, true])(
    'gives the loss and its gradients, fused and checkpointed %s',
    async (cut) => {
      const golden = await readGolden(name);
      const { loss: expected, tolerance } = golden.facts;
      const model = await Auto.fromPretrained(modelOf(golden), { trainable: true });
      model.gradientCheckpointing = cut;
      const parameters = new Map(model.namedParameters());
      for (const parameter of parameters.values()) parameter.requiresGrad = true;
      const loss = cut ? fusedLossOf(model, golden) : lossOf(model, golden);
      expect(Math.abs((await loss.item()) - expected)).toBeLessThan(tolerance.loss_abs);
      loss.backward();
      const gradientOf = (key: string) => parameters.get(key)?.grad;
      const count = expectGradients(golden.expected, gradientOf, tolerance.grad_abs_over_max_abs);
      expect(count).toBeGreaterThan(5);
    },
  );

  // The tolerance of logits is that of the classifiers, which MiniLM's golden numbers have for six layers in bf16. Gradients pass
  // through the ten branches of both stacks in both directions, and relu is off for some values where it is on in f64. Their
  // tolerance is a multiple of the error that rounding only the weights causes, with arithmetic in f32: a branch rounds its
  // activations two or three times as often as weights. Measured: 1.8 and 2.0 times.
  it('stays within bf16 rounding in bf16', async () => {
    const golden = await readGolden(name);
    const model = await Auto.fromPretrained(modelOf(golden), { dtype: 'bf16', trainable: true });
    const logits = golden.expected.logits_f64 as Tensor;
    const largest = Math.max(...numbers(logits).map(Math.abs));
    expect(rowError(logitsOf(model, golden), logits, golden.rows)).toBeLessThan(3e-2 * largest);
    const rounded = await Auto.fromPretrained(modelOf(golden), { trainable: true });
    roundToBf16(rounded);
    expect(gradientError(model, golden)).toBeLessThan(3 * gradientError(rounded, golden));
  });

  it('gives the logits and gradients of its adapter', async () => {
    const golden = await readGolden(name);
    const { tolerance, loss: expectedLoss } = golden.facts.adapters.adapter as AdapterFacts;
    const model = await Auto.fromPretrained(modelOf(golden));
    const { tensors: expected } = await loadSafetensors(
      join(golden.folder, 'expected-adapter.safetensors'),
    );
    const tuned = await AdapterModel.fromPretrained(model, join(golden.folder, 'adapter'));
    const loss = lossOf(model, golden);
    loss.backward();
    expect(Math.abs((await loss.item()) - expectedLoss)).toBeLessThan(tolerance.loss_abs);
    const error = rowError(logitsOf(model, golden), expected.logits as Tensor, golden.rows);
    expect(error).toBeLessThan(tolerance.logits_abs);
    const grads = peftGradients(tuned);
    const gradientOf = (key: string) => grads.get(key);
    const count = expectGradients(expected, gradientOf, tolerance.grad_abs_over_max_abs);
    expect(count).toBe(4);
  });

  it('loads its adapter from the PEFT folder, writes it unchanged, and merges it', async () => {
    const golden = await readGolden(name);
    const facts = golden.facts.adapters.adapter as AdapterFacts & {
      num_adapted_modules: number;
      merged_max_abs_logits_minus_adapter: number;
    };
    const load = async () =>
      AdapterModel.fromPretrained(
        await Auto.fromPretrained(modelOf(golden)),
        join(golden.folder, 'adapter'),
      );
    const tuned = await load();
    expect(tuned.modules).toHaveLength(facts.num_adapted_modules);
    const expected = goldenArrays(join(golden.folder, 'expected-adapter.safetensors'));
    const want = tensor(goldenArray(expected, 'logits').data as Float32Array, {
      shape: goldenArray(expected, 'logits').shape,
    });
    expect(rowError(logitsOf(tuned.model, golden), want, golden.rows)).toBeLessThan(
      facts.tolerance.logits_abs,
    );
    lossOf(tuned.model, golden).backward();
    const grads = new Map(tuned.parameters().map(({ name: key, tensor: t }) => [key, t.grad]));
    const keys = [...expected.keys()].filter((key) => key.startsWith('grad.'));
    expect(keys.length).toBeGreaterThan(3);
    for (const key of keys) {
      const path = key.replace('grad.base_model.model.', '').replace(/\.weight$/, '');
      const { data, shape } = goldenArray(expected, key);
      const error = relativeError(
        grads.get(path) as Tensor,
        tensor(data as Float32Array, { shape }),
      );
      expect(error, key).toBeLessThan(facts.tolerance.grad_abs_over_max_abs);
    }
    const out = join(folder, `${name}-adapter`);
    await tuned.savePretrained(out);
    const file = 'adapter_model.safetensors';
    expect(goldenArrays(join(out, file))).toEqual(
      goldenArrays(join(golden.folder, 'adapter', file)),
    );
    expect(readFileSync(join(out, 'adapter_config.json'), 'utf8')).toContain('SEQ_2_SEQ_LM');
    await saveMerged(tuned, `${out}-merged`);
    const merged = await Auto.fromPretrained(`${out}-merged`);
    expect(rowError(logitsOf(merged, golden), want, golden.rows)).toBeLessThan(
      facts.tolerance.logits_abs + facts.merged_max_abs_logits_minus_adapter,
    );
  });

  it('gives its adapter the same gradients whatever the layers keep for backward', async () => {
    const golden = await readGolden(name);
    const { tolerance } = golden.facts.adapters.adapter as AdapterFacts;
    const { tensors: expected } = await loadSafetensors(
      join(golden.folder, 'expected-adapter.safetensors'),
    );
    const keys = Object.keys(expected).filter((one) => one.startsWith('grad.'));
    for (const part of [/encoder\..*SelfAtt/, /encoder\..*Dense/, /decoder\..*SelfAtt/, /EncDec/]) {
      expect(keys.some((key) => part.test(key))).toBe(true);
    }
    for (const keep of ['saved', 'lean', 'thin', 'checkpointed'] as const) {
      const model = await Auto.fromPretrained(modelOf(golden));
      model.layerKeep = () => keep;
      const tuned = await AdapterModel.fromPretrained(model, join(golden.folder, 'adapter'));
      fusedLossOf(model, golden).backward();
      const grads = peftGradients(tuned);
      const gradientOf = (key: string) => grads.get(key);
      expectGradients(expected, gradientOf, tolerance.grad_abs_over_max_abs);
    }
  });

  // The golden numbers have four modules. As y = x W^T + s x A^T B^T, every module has dA = s B^T dW and dB = s dW A^T.
  it('gives the pairs of all modules in both stacks the gradients that follow from their weights', async () => {
    const golden = await readGolden(name);
    const model = await Auto.fromPretrained(modelOf(golden), { trainable: true });
    const tuned = await AdapterModel.fromPretrained(model, join(golden.folder, 'adapter'));
    for (const { linear } of tuned.modules) linear.weight.requiresGrad = true;
    lossOf(model, golden).backward();
    const countOf = (part: RegExp): number =>
      tuned.modules.filter((module) => part.test(module.name)).length;
    expect([countOf(/EncDecAttention/), countOf(/decoder\..*SelfAttention/)]).toEqual([8, 8]);
    expect(countOf(/encoder\.block/)).toBe(countOf(/decoder\.block/) - 8);
    const { grad_abs_over_max_abs: tolerance } = golden.facts.tolerance;
    for (const { name: at, linear, pair, scale } of tuned.modules) {
      const { a, b } = pair;
      const dW = linear.weight.grad as Tensor;
      const [dA, dB] = noGrad(() => [
        mul(matmul(transpose(b, 0, 1), dW), scale),
        mul(matmul(dW, transpose(a, 0, 1)), scale),
      ]) as [Tensor, Tensor];
      expect(relativeError(a.grad as Tensor, dA), at).toBeLessThan(tolerance);
      expect(relativeError(b.grad as Tensor, dB), at).toBeLessThan(tolerance);
    }
  });

  it('gives the same from prepared inputs, and asks for each layer of both stacks what it keeps', async () => {
    const golden = await readGolden(name);
    const model = (await Auto.fromPretrained(modelOf(golden))) as T5ForConditionalGeneration;
    const asked: [number, number][] = [];
    model.layerKeep = (layer, rows) => {
      asked.push([layer, rows]);
      return 'lean';
    };
    const rows = Int32Array.of(3, 0);
    const [plain, prepared] = noGrad(() => [
      model.forward(golden.batch, { rows }),
      model.forwardPrepared(model.prepare(golden.batch, { rows })),
    ]) as [Tensor, Tensor];
    expect(values(prepared)).toEqual(values(plain));
    const { encoderLayers, decoderLayers } = model.config;
    const all = golden.batch.inputIds.length + golden.batch.decoder.inputIds.length;
    const once = Array.from({ length: encoderLayers + decoderLayers }, (_, i) => [i, all]);
    expect(asked).toEqual([...once, ...once]);
  });

  it('is loaded from its GGUF file', async () => {
    const golden = await readGolden(name);
    const path = join(folder, `${name}.gguf`);
    writeGoldenGguf(path, name);
    // The file does not contain the largest distance of positions, and has its numbers in f32.
    const twin = join(folder, `${name}-twin`);
    cpSync(modelOf(golden), twin, { recursive: true });
    const config = JSON.parse(readFileSync(join(twin, 'config.json'), 'utf8'));
    writeFileSync(
      join(twin, 'config.json'),
      JSON.stringify({
        ...config,
        relative_attention_max_distance: 128,
        layer_norm_epsilon: Math.fround(config.layer_norm_epsilon),
      }),
    );
    const [got, want] = (await Promise.all([path, twin].map((p) => Auto.fromPretrained(p)))) as [
      T5ForConditionalGeneration,
      T5ForConditionalGeneration,
    ];
    const { source: _, ...read } = got.config;
    const { source: __, ...meant } = want.config;
    expect(read).toEqual(meant);
    expect(values(logitsOf(got, golden))).toEqual(values(logitsOf(want, golden)));
    const saved = join(folder, `${name}-from-gguf`);
    await saveModel(got, saved);
    expect(values(logitsOf(await Auto.fromPretrained(saved), golden))).toEqual(
      values(logitsOf(got, golden)),
    );
  });

  it('accepts other spellings of configuration keys and tensor names, also after saving', async () => {
    const golden = await readGolden(name);
    const copies = [join(golden.folder, 'model-alt')].filter((path) => existsSync(path));
    const legacy = join(golden.folder, 'config-legacy.json');
    if (existsSync(legacy)) {
      const copy = join(folder, `${name}-legacy`);
      cpSync(modelOf(golden), copy, { recursive: true });
      cpSync(legacy, join(copy, 'config.json'));
      copies.push(copy);
    }
    const model = await Auto.fromPretrained(modelOf(golden));
    copies.push(join(folder, `${name}-saved`));
    await saveModel(model, copies.at(-1) as string);
    const plain = values(logitsOf(model, golden));
    for (const copy of copies) {
      const other = logitsOf(await Auto.fromPretrained(copy), golden);
      expect(values(other), copy).toEqual(plain);
    }
  });
});

it('gives each example in a micro-batch of Seq2SeqBatches the numbers that it has alone', async () => {
  const model = await Auto.fromPretrained(kTinyT5, { dtype: 'f64' });
  const lossesOf = async (batchSize: number) => {
    const rows: number[][] = [];
    const data = await tinySeq2SeqData(7, { batchSize, shuffle: false });
    for await (const batch of data.batches(0)) {
      const { targets, cuSeqlens } = batch.decoder;
      const logits = noGrad(() => model.logits(model.forward(batch)));
      const losses = plainLosses(values(logits), targets);
      for (let b = 0; b + 1 < cuSeqlens.length; b++) {
        rows.push(losses.slice(cuSeqlens[b], cuSeqlens[b + 1]));
      }
      const mean = noGrad(() => crossEntropy(logits, tensor(targets)));
      const sum = losses.reduce((a, c) => a + c, 0);
      expect(await mean.item()).toBeCloseTo(sum / losses.length, 10);
    }
    return rows;
  };
  const [alone, together] = [await lossesOf(1), await lossesOf(3)];
  expect(together.map(({ length }) => length)).toEqual([2, 3, 4, 5, 2, 3, 4]);
  together.forEach((losses, i) => {
    losses.forEach((loss, t) => {
      expect(loss).toBeCloseTo(alone[i]?.[t] as number, 10);
    });
  });
});

/** The cross-entropy of each row. */
function plainLosses(logits: Float64Array, targets: Int32Array): number[] {
  const v = logits.length / targets.length;
  return Array.from(targets, (target, row) => {
    const of = logits.subarray(row * v, (row + 1) * v);
    return Math.log(of.reduce((sum, x) => sum + Math.exp(x), 0)) - (of[target] as number);
  });
}

describe('decoderStartTokenId and padTokenId', () => {
  const withIds = async (ids: object): Promise<Seq2SeqLM> => {
    const copy = mkdtempSync(join(folder, 'ids-'));
    cpSync(architecture('t5/model'), copy, { recursive: true });
    const path = join(copy, 'config.json');
    const config = JSON.parse(readFileSync(path, 'utf8'));
    delete config.decoder_start_token_id;
    delete config.pad_token_id;
    writeFileSync(path, JSON.stringify({ ...config, ...ids }));
    return Auto.fromPretrained(copy);
  };

  it.each([
    ['as configured', { decoder_start_token_id: 5, pad_token_id: 3 }, 5, 3],
    ['of the padding where no start is stated', { pad_token_id: 3 }, 3, 3],
    ["transformers' default where neither is", {}, 0, 0],
    ['without padding', { pad_token_id: -1 }, 0, null],
  ])('%s', async (_, ids, start, pad) => {
    const model = await withIds(ids);
    expect([model.decoderStartTokenId, model.padTokenId]).toEqual([start, pad]);
  });

  it('are refused outside of the vocabulary', async () => {
    await expect(withIds({ decoder_start_token_id: 109 })).rejects.toThrow(
      /config\.json: decoder_start_token_id must be below vocab_size 109, got 109/,
    );
    await expect(withIds({ decoder_start_token_id: -1 })).rejects.toThrow(
      /config\.json: decoder_start_token_id/,
    );
    await expect(withIds({ pad_token_id: 200 })).rejects.toThrow(
      /pad_token_id must be below vocab_size 109, got 200/,
    );
  });

  it('are read from a GGUF file', async () => {
    const path = join(folder, 'start.gguf');
    writeGoldenGguf(path, 't5', { decoder_start_token_id: 7 });
    expect((await Auto.fromPretrained(path)).decoderStartTokenId).toBe(7);
  });
});

it('refuses batches whose sides do not fit, and types that are no encoder-decoder', async () => {
  const golden = await readGolden('t5');
  const model = await Auto.fromPretrained(modelOf(golden));
  const { decoder } = golden.batch;
  const one = { ...decoder, cuSeqlens: Int32Array.of(0, decoder.inputIds.length) };
  expect(() => model.forward({ ...golden.batch, decoder: one })).toThrow(
    /as many segments as the encoder, 3, got 1/,
  );
  expect(() => model.forward({ ...golden.batch, lengths: Int32Array.of(0, 1, 1) })).toThrow(
    /segment 0 of the encoder must have at least one token/,
  );
  const { decoder: _, ...source } = golden.batch;
  for (const run of [
    () => model.forward(source as Seq2SeqBatch),
    () => model.forwardPrepared({ length: 1 } as Parameters<Seq2SeqLM['forwardPrepared']>[0]),
  ]) {
    expect(run).toThrow(
      /the batch has no decoder, but t5 reads a source and a target; make batches with Seq2SeqBatches/,
    );
  }
  await expect(Auto.fromPretrained(architecture('bert/model'))).rejects.toThrow(
    /model_type "bert" is not supported as an encoder-decoder, only as classification: .*; known: t5;/,
  );
  const qwen2 = join(folder, 'qwen2.gguf');
  writeGoldenGguf(qwen2, 'qwen2');
  await expect(Auto.fromPretrained(qwen2)).rejects.toThrow(
    /general\.architecture "qwen2" is not supported as an encoder-decoder; known: t5;/,
  );
});

// Causal language models against transformers: logits, hidden states, losses and gradients of a tiny checkpoint of every family,
// in f32 and f64, with both spellings of the configuration and with other tensor names.
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { loadSafetensors } from '../../lib/io/index.ts';
import { AutoModelForCausalLM, type CausalLM, saveModel } from '../../lib/models/index.ts';
import { Conv1D, type Linear } from '../../lib/nn/index.ts';
import { contiguous, crossEntropy, full, transpose } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { values } from '../support/compare.ts';
import {
  architecture,
  type Golden,
  goldenNames,
  gradientNormError,
  kBf16Band,
  readGolden,
  relativeError,
  rowError,
  rowNormError,
} from '../support/golden_checkpoints.ts';

const kNames = goldenNames('causal_lm');
const folder = mkdtempSync(join(tmpdir(), 'balora-llama-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function logitsOf(model: CausalLM, { batch }: Golden): Tensor {
  return noGrad(() => model.logits(model.forward(batch)));
}

/** A parameter's gradient in the layout of the checkpoint: GPT-2 stores its linears as (in,out). */
function asStored(model: CausalLM, parameter: Tensor, grad: Tensor): Tensor {
  const owners = Array.from(model.namedModules(), ([, module]) => module);
  const transposed = owners.some((m) => m instanceof Conv1D && m.weight === parameter);
  return transposed ? noGrad(() => contiguous(transpose(grad))) : grad;
}

describe.each(kNames)('%s', (name) => {
  it('gives the logits and hidden states of transformers in f32', async () => {
    const golden = await readGolden(name);
    const { tolerance } = golden.facts;
    const model = await AutoModelForCausalLM.fromPretrained(join(golden.folder, 'model'));
    const hidden = noGrad(() => model.forward(golden.batch));
    const { last_hidden_state, logits } = golden.expected as Record<string, Tensor>;
    expect(rowError(hidden, last_hidden_state as Tensor, golden.rows)).toBeLessThan(
      tolerance.last_hidden_state_abs,
    );
    expect(rowError(model.logits(hidden), logits as Tensor, golden.rows)).toBeLessThan(
      tolerance.logits_abs,
    );
  });

  it('gives the f64 logits in f64, where rounding hides no error', async () => {
    const golden = await readGolden(name);
    const model = await AutoModelForCausalLM.fromPretrained(join(golden.folder, 'model'), {
      dtype: 'f64',
    });
    const error = rowError(
      logitsOf(model, golden),
      golden.expected.logits_f64 as Tensor,
      golden.rows,
    );
    expect(error).toBeLessThan(1e-9);
  });

  it('gives the loss and its gradients', async () => {
    const golden = await readGolden(name);
    const { loss: expected, tolerance } = golden.facts;
    const model = await AutoModelForCausalLM.fromPretrained(join(golden.folder, 'model'), {
      trainable: true,
    });
    const parameters = new Map(model.namedParameters());
    for (const parameter of parameters.values()) parameter.requiresGrad = true;
    const loss = crossEntropy(
      model.logits(model.forward(golden.batch)),
      tensor(golden.batch.targets),
    );
    expect(Math.abs((await loss.item()) - expected)).toBeLessThan(tolerance.loss_abs);
    loss.backward();
    const gradients = Object.keys(golden.expected).filter((key) => key.startsWith('grad.'));
    expect(gradients.length).toBeGreaterThan(5);
    for (const key of gradients) {
      const parameter = parameters.get(key.slice('grad.'.length));
      expect(parameter?.grad, key).toBeDefined();
      const stored = asStored(model, parameter as Tensor, parameter?.grad as Tensor);
      const error = relativeError(stored, golden.expected[key] as Tensor);
      expect(error, key).toBeLessThan(tolerance.grad_abs_over_max_abs);
    }
  });

  it('stays within rounding in bf16', async () => {
    const golden = await readGolden(name);
    const model = await AutoModelForCausalLM.fromPretrained(join(golden.folder, 'model'), {
      trainable: true,
      dtype: 'bf16',
    });
    const parameters = new Map(model.namedParameters());
    for (const parameter of parameters.values()) parameter.requiresGrad = true;
    const logits = model.logits(model.forward(golden.batch));
    const error = rowNormError(logits, golden.expected.logits_f64 as Tensor, golden.rows);
    expect(error).toBeLessThan(kBf16Band.logits);
    crossEntropy(logits.to('f32'), tensor(golden.batch.targets)).backward();
    const gradError = gradientNormError(golden.expected, (key) => {
      const parameter = parameters.get(key) as Tensor;
      return asStored(model, parameter, parameter.grad as Tensor);
    });
    expect(gradError).toBeLessThan(kBf16Band.gradients);
  });
});

// The configuration of gpt2 has the same spelling in both versions.
it.each(kNames.filter((name) => name !== 'gpt2'))(
  '%s accepts the spelling of transformers 4',
  async (name) => {
    const golden = await readGolden(name);
    const legacy = join(folder, name);
    cpSync(join(golden.folder, 'model'), legacy, { recursive: true });
    cpSync(join(golden.folder, 'config-legacy.json'), join(legacy, 'config.json'));
    const [a, b] = await Promise.all(
      [legacy, join(golden.folder, 'model')].map((path) =>
        AutoModelForCausalLM.fromPretrained(path),
      ),
    );
    expect(logitsOf(a as CausalLM, golden).dataSync()).toEqual(
      logitsOf(b as CausalLM, golden).dataSync(),
    );
  },
);

describe.each(kNames)('%s saved', (name) => {
  it('is the same model: names, shapes, configuration, logits', async () => {
    const golden = await readGolden(name);
    const from = join(golden.folder, 'model');
    const to = join(folder, `${name}-saved`);
    const model = await AutoModelForCausalLM.fromPretrained(from);
    await saveModel(model, to);
    const json = (path: string): Record<string, unknown> =>
      JSON.parse(readFileSync(join(path, 'config.json'), 'utf8'));
    expect(json(to)).toEqual({ ...json(from), dtype: 'float32' });
    if (name !== 'llama-sharded') {
      const read = await Promise.all(
        [from, to].map((path) => loadSafetensors(join(path, 'model.safetensors'))),
      );
      const [before, after] = read.map(({ tensors }) =>
        Object.entries(tensors)
          .map(([key, tensor]) => [key, tensor.shape, Array.from(values(tensor))])
          .sort(),
      );
      expect(after).toEqual(before);
    }
    const again = await AutoModelForCausalLM.fromPretrained(to);
    expect(values(logitsOf(again, golden))).toEqual(values(logitsOf(model, golden)));
  });
});

describe('gradient checkpointing', () => {
  it.each(kNames)('gives %s the same loss and gradients in f64', async (name) => {
    const golden = await readGolden(name);
    const results = [];
    for (const gradientCheckpointing of [false, true]) {
      const model = await AutoModelForCausalLM.fromPretrained(join(golden.folder, 'model'), {
        trainable: true,
        dtype: 'f64',
      });
      model.gradientCheckpointing = gradientCheckpointing;
      for (const parameter of model.parameters()) parameter.requiresGrad = true;
      const loss = crossEntropy(
        model.logits(model.forward(golden.batch)),
        tensor(golden.batch.targets),
      );
      loss.backward();
      results.push([loss, ...model.parameters().map((parameter) => parameter.grad as Tensor)]);
    }
    const [plain, checkpointed] = results as [Tensor[], Tensor[]];
    plain.forEach((expected, i) => {
      expect(relativeError(checkpointed[i] as Tensor, expected)).toBeLessThan(1e-12);
    });
  });

  it('computes gradients of a layer whose input is frozen, and needs less memory', async () => {
    const golden = await readGolden('llama-untied-gqa');
    const peaks: number[] = [];
    const gradients: Tensor[] = [];
    for (const gradientCheckpointing of [false, true]) {
      const model = await AutoModelForCausalLM.fromPretrained(join(golden.folder, 'model'), {
        trainable: true,
      });
      model.gradientCheckpointing = gradientCheckpointing;
      const first = model.module('model.layers.0.self_attn.q_proj') as Linear;
      first.weight.requiresGrad = true;
      const n = 2000;
      const batch = {
        inputIds: Int32Array.from({ length: n }, (_, i) => i % 113),
        positions: Int32Array.from({ length: n }, (_, i) => i % 20),
        cuSeqlens: Int32Array.from({ length: n / 20 + 1 }, (_, i) => i * 20),
      };
      await collectGarbage();
      const before = memoryStats().liveBytes;
      const hidden = model.forward(batch);
      await synchronize();
      peaks.push(memoryStats().liveBytes - before);
      hidden.backward(noGrad(() => full(hidden.shape, 1)));
      gradients.push(first.weight.grad as Tensor);
      hidden.dispose();
    }
    const [plain, checkpointed] = peaks as [number, number];
    expect(checkpointed).toBeLessThan(0.6 * plain);
    expect(relativeError(gradients[1] as Tensor, gradients[0] as Tensor)).toBeLessThan(1e-5);
  });
});

describe('gpt2', () => {
  it('is loaded from a checkpoint of the bare model with attention masks', async () => {
    const golden = await readGolden('gpt2');
    const model = await AutoModelForCausalLM.fromPretrained(join(golden.folder, 'model-alt'));
    const error = rowError(logitsOf(model, golden), golden.expected.logits as Tensor, golden.rows);
    expect(error).toBeLessThan(golden.facts.tolerance.logits_abs);
  });

  it('refuses a sequence longer than its table of positions', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(architecture('gpt2/model'));
    const run = (n: number): Tensor =>
      model.forward({
        inputIds: new Int32Array(n),
        positions: Int32Array.from({ length: n }, (_, i) => i),
        cuSeqlens: Int32Array.of(0, n),
      });
    expect(run(24).shape).toEqual([24, 40]);
    expect(() => run(25)).toThrow(/25 tokens is longer than the position table.*\(24\)/);
  });
});

describe('tied embeddings', () => {
  it('are one parameter, also where the file contains the head again', async () => {
    const golden = await readGolden('llama-tied');
    const model = await AutoModelForCausalLM.fromPretrained(join(golden.folder, 'model-alt'));
    const names = Array.from(model.namedParameters(), ([name]) => name);
    expect(names).not.toContain('lm_head.weight');
    expect(model.head.weight).toBe(
      new Map(model.namedParameters()).get('model.embed_tokens.weight'),
    );
    const error = rowError(logitsOf(model, golden), golden.expected.logits as Tensor, golden.rows);
    expect(error).toBeLessThan(golden.facts.tolerance.logits_abs);
  });
});

describe('forward', () => {
  it('gives the same numbers with padding, and for chosen rows alone', async () => {
    const golden = await readGolden('llama-untied-gqa');
    const model = await AutoModelForCausalLM.fromPretrained(join(golden.folder, 'model'));
    const { inputIds, positions, cuSeqlens } = golden.batch;
    const plain = model.forward(golden.batch);
    const [b, t] = [cuSeqlens.length - 1, Math.max(...positions) + 1];
    const padded = {
      inputIds: new Int32Array(b * t),
      positions: Int32Array.from({ length: b * t }, (_, i) => i % t),
      cuSeqlens: Int32Array.from({ length: b + 1 }, (_, i) => i * t),
      lengths: Int32Array.from(
        { length: b },
        (_, i) => (cuSeqlens[i + 1] as number) - (cuSeqlens[i] as number),
      ),
    };
    golden.rows.forEach((row, n) => {
      padded.inputIds[row] = inputIds[n] as number;
    });
    const rows = model.forward(padded);
    const chosen = model.logits(rows, golden.rows).dataSync() as Float32Array;
    (model.logits(plain).dataSync() as Float32Array).forEach((value, i) => {
      expect(chosen[i]).toBeCloseTo(value, 4);
    });
  });

  it('refuses batches that do not fit together, and ids outside the vocabulary', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(architecture('llama-tied/model'));
    const batch = { inputIds: [1, 2, 3], positions: [0, 1, 2], cuSeqlens: [0, 3] };
    const run = (change: Partial<Record<keyof typeof batch | 'lengths', number[]>>): Tensor => {
      const all = Object.entries({ ...batch, ...change }).map(([k, v]) => [
        k,
        Int32Array.from(v as number[]),
      ]);
      return model.forward(Object.fromEntries(all));
    };
    expect(run({}).shape).toEqual([3, 40]);
    expect(() => run({ inputIds: [1, 113, 3] })).toThrow(
      /inputIds\[1\] must be 0 to 112, an id of the vocabulary, got 113/,
    );
    expect(() => run({ inputIds: [] })).toThrow(/inputIds must have at least one id/);
    expect(() => run({ positions: [0, 1] })).toThrow(
      /positions must be as many as inputIds, 3, got 2/,
    );
    expect(() => run({ positions: [0, -1, 2] })).toThrow(/positions\[1\] must be >= 0, got -1/);
    expect(() => run({ cuSeqlens: [0, 2] })).toThrow(/from 0 to 3/);
    expect(() => run({ cuSeqlens: [0, 2, 1, 3] })).toThrow(
      /cuSeqlens must not fall, as it does at segment 1/,
    );
    expect(() => run({ lengths: [4] })).toThrow(
      /lengths\[0\] must be 0 to 3, the rows of its segment, got 4/,
    );
  });
});

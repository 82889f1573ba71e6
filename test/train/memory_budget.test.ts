// Memory budgets determine what is kept for backward, and never the results.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { Batches } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { deviceInfo } from '../../lib/device.ts';
import { ArgumentError } from '../../lib/errors.ts';
import type { DecoderLM } from '../../lib/models/decoder.ts';
import { AutoModelForCausalLM, type LayerKeep } from '../../lib/models/index.ts';
import { full } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { noGrad, type Tensor } from '../../lib/tensor.ts';
import { type MemoryBudget, MemoryPlanner, type RunMemory } from '../../lib/train/memory_plan.ts';
import { requireRunMemory } from '../../lib/train/plan.ts';
import { resolveRun } from '../../lib/train/resolve_run.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import type { Batch, RunPlan } from '../../lib/train/types.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { numbersOf } from '../support/run_numbers.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinySource } from '../support/tiny_model.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-memory-'));
  await writeTinyCheckpoint(folder);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const adapted = async (dtype: 'f32' | 'bf16') =>
  AdapterModel.create(await AutoModelForCausalLM.fromPretrained(folder, { dtype }), {
    r: 3,
    loraAlpha: 6,
    initLoraWeights: 'pissa_niter_4',
  });

/** Micro-batches of two segments with different lengths. */
const batches = (): Batch[] =>
  Array.from({ length: 4 }, (_, b) => {
    const rows = 20 + 17 * b;
    const half = rows >> 1;
    return {
      inputIds: Int32Array.from({ length: rows }, (_, n) => (5 * n + 3 * b) % 11),
      targets: Int32Array.from({ length: rows }, (_, n) => (n % 3 === 0 ? -100 : (7 * n) % 11)),
      positions: Int32Array.from({ length: rows }, (_, n) => (n < half ? n : n - half)),
      cuSeqlens: Int32Array.of(0, half, rows),
    };
  });

async function run(dtype: 'f32' | 'bf16', memoryBudget?: MemoryBudget) {
  const tuned = await adapted(dtype);
  const numbers: number[][] = [];
  const norms: number[] = [];
  for await (const event of new Trainer({
    tuned,
    data: tinySource(batches()),
    maxSteps: 4,
    learningRate: 0, // every step has the same parameters
    lrSchedulerType: 'constant',
    regularizers: { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02, svdTopK: 2 },
    ...(memoryBudget === undefined ? {} : { memoryBudget }),
  }).run()) {
    if (event.type !== 'step') continue;
    numbers.push(numbersOf(event.record).slice(0, -1));
    norms.push(event.record.gradNorm);
  }
  tuned.model.dispose();
  tuned.dispose();
  return { numbers, norms };
}

// At the input of a checkpointed layer the two gradients of the residual stream are rounded before their addition instead of
// after it.
describe.each([
  ['f32', 1e-6],
  ['bf16', 2e-3],
] as const)('memory budgets in %s', (dtype, rounding) => {
  it('give bit-identical losses, and gradients that differ only by rounding', async () => {
    const free = await run(dtype);
    expect(free.numbers).toHaveLength(4);
    for (const budget of ['max', 'min', 2 ** 40] as const) {
      const found = await run(dtype, budget);
      expect(found.numbers).toEqual(free.numbers);
      found.norms.forEach((norm, step) => {
        const wanted = free.norms[step] as number;
        expect(Math.abs(norm - wanted)).toBeLessThanOrEqual(rounding * wanted);
      });
      if (budget === 'max' || budget === 2 ** 40) expect(found.norms).toEqual(free.norms);
    }
  });
});

describe('a budget that cannot be kept', () => {
  const warningsOf = async (memoryBudget: number) => {
    const tuned = await adapted('bf16');
    const found: { code: string; message: string }[] = [];
    const input = { tuned, data: tinySource(batches()), maxSteps: 4, memoryBudget };
    for await (const event of new Trainer(input).run()) {
      if (event.type === 'warning' && event.code.startsWith('memory_budget')) found.push(event);
    }
    tuned.model.dispose();
    tuned.dispose();
    return found;
  };

  const kRefused =
    /^memoryBudget: (\S+ \S+) is below the smallest plan: a micro-batch of (\d+) tokens? takes ([\d.]+) MiB with every layer checkpointed; .*min/;

  it('below the smallest plan is refused with both sizes, and the model is as it was', async () => {
    const tuned = await adapted('bf16');
    const { layerKeep } = tuned.model;
    const input = { tuned, data: tinySource(batches()), maxSteps: 4, memoryBudget: 1000 };
    const ways = [
      () => new Trainer(input).train(),
      () => new Trainer(input).plan({ measure: true }),
    ];
    for (const way of ways) {
      const error = await way().then(
        () => expect.unreachable(),
        (thrown: unknown) => thrown,
      );
      expect(error).toBeInstanceOf(ArgumentError);
      expect((error as Error).message).toMatch(kRefused);
    }
    expect(tuned.model.layerKeep).toBe(layerKeep);
    expect((await new Trainer({ ...input, memoryBudget: 'min' }).train()).steps).toBe(4);
    expect(await warningsOf(deviceInfo('cpu').totalBytes)).toEqual([]);
  });

  it('of data that tell their lengths is refused for the largest micro-batch, and leaves an earlier run', async () => {
    const rows = arrayRows(
      Array.from({ length: 9 }, (_, i) => ({ prompt: 'ab'.repeat(1 + 3 * i), response: 'c' })),
    );
    const model = await AutoModelForCausalLM.fromConfig({
      ...{ model_type: 'llama', hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2 },
      ...{ num_attention_heads: 2, num_key_value_heads: 1, vocab_size: tinyTokenizer().vocabSize },
    });
    const tuned = await AdapterModel.create(model, { r: 2 });
    const options = { batchSize: 2, promptTemplate: 'none' };
    const data = await Batches.create(rows, tinyTokenizer(), options);
    let largest = 0;
    for (const epoch of [0, 1]) {
      for await (const { inputIds } of data.batches(epoch)) {
        largest = Math.max(largest, inputIds.length);
      }
    }
    const output = join(folder, 'refused');
    await new Trainer({ tuned, data, output, maxSteps: 1 }).train();
    const kept = readFileSync(join(output, 'run/result.json'), 'utf8');
    const more = { numTrainEpochs: 2, memoryBudget: 2 ** 20, overwrite: true };
    const refused = new Trainer({ tuned, data, output, ...more }).train();
    const error = await refused.then(
      () => expect.unreachable(),
      (thrown: Error) => thrown,
    );
    expect(kRefused.exec(error.message)?.[2]).toBe(String(largest));
    expect(readFileSync(join(output, 'run/result.json'), 'utf8')).toBe(kept);
    await rows.close();
  });

  it('for some batch only is refused with its rows, when that comes', async () => {
    const tuned = await adapted('bf16');
    const roomy = await MemoryPlanner.open(tuned, 2 ** 50, { optimizerBytes: 0 });
    const rows = 2 ** 24;
    const budget = roomy.plan(rows).bytes / 4;
    await MemoryPlanner.open(tuned, budget, { optimizerBytes: 0 });
    const { layerKeep } = tuned.model;
    layerKeep?.(0, 10);
    expect(() => layerKeep?.(0, rows)).toThrow(`a micro-batch of ${rows} tokens takes `);
    layerKeep?.(0, 10);
    tuned.model.dispose();
    tuned.dispose();
  });

  it('is refused for the largest part that does not fit, with advice about that', async () => {
    const tuned = await adapted('bf16');
    const huge = { writingBytes: 2 ** 40, begunBytes: 2 ** 30, optimizerBytes: 0 };
    await expect(MemoryPlanner.open(tuned, 2 ** 20, huge)).rejects.toThrow(
      /: writing the result takes 1\.00 TiB; .*, or use a lower rank, or a base in blocks$/,
    );
    await expect(
      MemoryPlanner.open(tuned, 2 ** 20, { ...huge, begunBytes: 2 ** 41 }),
    ).rejects.toThrow(
      /: loading the model and starting its adapter takes 2\.00 TiB; .*use another start of the adapter, or/,
    );
    const sampling = { rows: 2, bytes: 2 ** 42 };
    await expect(MemoryPlanner.open(tuned, 2 ** 20, { ...huge, sampling })).rejects.toThrow(
      /: answering the sample prompts takes 4\.00 TiB; .*use fewer or shorter sample prompts/,
    );
    const wide = await adapted('f32');
    await expect(MemoryPlanner.open(wide, 2 ** 20, { optimizerBytes: 0 })).rejects.toThrow(
      /: a micro-batch of 1 token takes .* with every layer checkpointed; .*use smaller micro-batches, or dtype bf16, or a base in blocks$/,
    );
    // The size that is named is enough.
    const refusal = await MemoryPlanner.open(wide, 2 ** 20, { optimizerBytes: 0 }).catch(
      (error: Error) => error.message,
    );
    const [, size] = /takes ([\d.]+) MiB/.exec(refusal as string) ?? [];
    await MemoryPlanner.open(wide, (Number(size) + 4) * 2 ** 20, { optimizerBytes: 0 });
    for (const each of [tuned, wide]) {
      each.model.dispose();
      each.dispose();
    }
  });

  it('is of one run: measuring a micro-batch leaves no plan', async () => {
    const tuned = await adapted('bf16');
    const { layerKeep } = tuned.model;
    const input = { tuned, data: tinySource(batches()), maxSteps: 1, memoryBudget: 2 ** 34 };
    const { memoryPlan } = await new Trainer(input).plan({ measure: true });
    expect(memoryPlan?.overBudget).toBe(false);
    expect(tuned.model.layerKeep).toBe(layerKeep);
    tuned.model.dispose();
    tuned.dispose();
  });

  it('counts evaluations, whose batches may be longer where nothing of them is kept', async () => {
    const tuned = await adapted('bf16');
    const rows = 2 ** 22;
    const run = { optimizerBytes: 0, largest: rows };
    const { bytes } = (await MemoryPlanner.open(tuned, 'max', run)).plan(rows);
    const budget = 1.02 * bytes;
    await MemoryPlanner.open(tuned, budget, run);
    const { layerKeep } = tuned.model;
    const longer = Math.round(1.9 * rows);
    expect(() => layerKeep?.(0, longer)).toThrow(`a micro-batch of ${longer} tokens takes `);
    noGrad(() => layerKeep?.(0, longer));
    expect(() => noGrad(() => layerKeep?.(0, 10 * rows))).toThrow(
      /a batch of \d+ tokens takes .* GiB; raise the budget/,
    );
    // Those that are known are refused at once, and so are a result and matrices that do not fit.
    const open = (more: Partial<RunMemory>) =>
      MemoryPlanner.open(tuned, budget, { ...run, ...more });
    await open({ evaluation: { rows: longer, bytes: 0 }, writingBytes: 0.1 * bytes });
    await expect(open({ evaluation: { rows: 10 * rows, bytes: 0 } })).rejects.toThrow(
      `an evaluation with batches of ${10 * rows} tokens takes `,
    );
    await expect(open({ evaluation: { rows: 1, bytes: 2 * bytes } })).rejects.toThrow(
      'an evaluation with batches of 1 token takes ',
    );
    await expect(open({ writingBytes: 2 * bytes })).rejects.toThrow('writing the result takes ');
    tuned.model.dispose();
    tuned.dispose();
  });

  it('holds for the training alone: longer rows are evaluated in it and computed after it', async () => {
    const tuned = await adapted('bf16');
    const { layerKeep } = tuned.model;
    // The test's own process grows from one measurement to the next, by more than the passes differ.
    const now = process.memoryUsage();
    const memoryUsage = vi.spyOn(process, 'memoryUsage').mockReturnValue(now);
    const rows = 2 ** 18;
    const long = {
      inputIds: new Int32Array(rows).fill(3),
      targets: new Int32Array(rows).fill(-100).fill(3, 0, 8),
      positions: Int32Array.from({ length: rows }, (_, n) => n % 16),
      cuSeqlens: Int32Array.from({ length: rows / 16 + 1 }, (_, b) => 16 * b),
    };
    const planned = (memoryBudget: MemoryBudget) =>
      new Trainer({ tuned, data: tinySource([long]), maxSteps: 1, memoryBudget }).plan({
        measure: true,
      });
    const { memoryPlan } = await planned('min');
    // Training on them takes 35 MiB more than evaluating them: the inputs of the checkpointed layers.
    const memoryBudget = Number(memoryPlan?.bytes) - 10 * 2 ** 20;
    await expect(planned(memoryBudget)).rejects.toThrow(`a micro-batch of ${rows} tokens takes `);
    const input = { tuned, data: tinySource(batches()), maxSteps: 1, memoryBudget };
    const evalData = tinySource([long]);
    const { evaluation } = await new Trainer({ ...input, evalData }).train();
    expect(evaluation?.loss).toBeGreaterThan(0);
    expect(tuned.model.layerKeep).toBe(layerKeep);
    const { targets: _, ...batch } = long;
    noGrad(() => tuned.model.forward(batch)).dispose();
    memoryUsage.mockRestore();
    tuned.model.dispose();
    tuned.dispose();
  });

  it('leaves no plan behind where a run is refused after it', async () => {
    const tuned = await adapted('bf16');
    const { layerKeep } = tuned.model;
    const output = join(folder, 'resumed');
    const input = { tuned, data: tinySource(batches()), output, memoryBudget: 'min' } as const;
    await new Trainer({ ...input, maxSteps: 1 }).train();
    const other = { ...input, maxSteps: 2, resume: true, learningRate: 0.5 };
    await expect(new Trainer(other).train()).rejects.toThrow(/learningRate/);
    expect(tuned.model.layerKeep).toBe(layerKeep);
    tuned.model.dispose();
    tuned.dispose();
  });

  it('above the memory that there is is a warning with its size', async () => {
    const [warning, ...others] = await warningsOf(2 ** 50);
    expect(others).toEqual([]);
    expect(warning?.code).toBe('memory_budget_above_memory');
    expect(warning?.message).toMatch(
      /^memoryBudget: 1024\.0 TiB is more than the [\d.]+ GiB that cpu has, so the plan is made for these$/,
    );
  });

  it('gradients and moments that do not fit are refused before the first step', () => {
    const plan = { memory: { optimizerBytes: 2 ** 60 } } as RunPlan;
    const input = { tuned: { model: { device: 'cpu' } } } as never;
    expect(() => requireRunMemory(input, plan)).toThrow(
      /^the gradients and the optimiser's moments take 1048576\.0 TiB, and [\d.]+ GiB of [\d.]+ GiB are free on cpu; train an adapter, /,
    );
    expect(() =>
      requireRunMemory(input, { memory: { optimizerBytes: 2 ** 20 } } as RunPlan),
    ).not.toThrow();
  });
});

describe('lean layers', () => {
  /** Bytes that a forward keeps for its backward, and the gradients of all master weights. */
  const pass = async (keep: LayerKeep | ((layer: number) => LayerKeep)) => {
    const tuned = await adapted('bf16');
    const { model } = tuned;
    model.layerKeep = typeof keep === 'string' ? () => keep : keep;
    const { inputIds, positions, cuSeqlens } = batches().at(-1) as Batch;
    await collectGarbage();
    const before = memoryStats().liveBytes;
    const hidden = model.forward({ inputIds, positions, cuSeqlens });
    await synchronize();
    const kept = memoryStats().liveBytes - before;
    hidden.backward(noGrad(() => full(hidden.shape, 0.5)));
    const gradients = await Promise.all(
      tuned.parameters().map(({ tensor }) => (tensor.grad as Tensor).data()),
    );
    const { numLayers, hiddenSize, intermediateSize } = (model as DecoderLM).config;
    // Each layer has two norms and one activation. The first norm is kept, since no op on the tape could recompute it.
    const rows = inputIds.length;
    const values = rows * (numLayers * (2 * hiddenSize + intermediateSize) - hiddenSize);
    const up = rows * numLayers * intermediateSize;
    for (const { tensor } of tuned.parameters()) tensor.grad = null;
    hidden.dispose();
    model.dispose();
    tuned.dispose();
    return { kept, gradients, dropped: 2 * values, up: 2 * up };
  };

  it('do not keep norms and activations, and give bit-identical gradients', async () => {
    const [saved, lean] = [await pass('saved'), await pass('lean')];
    expect(lean.gradients).toEqual(saved.gradients);
    expect(saved.kept - lean.kept).toBe(saved.dropped);
  });

  it('that are thin do not keep the factor of the activation either, for the same gradients', async () => {
    const [saved, thin] = [await pass('saved'), await pass('thin')];
    expect(thin.gradients).toEqual(saved.gradients);
    expect(saved.kept - thin.kept).toBe(saved.dropped + saved.up);
  });

  it('that are checkpointed keep less, and so does the first one of a frozen model', async () => {
    const [lean, first, both] = [
      await pass('lean'),
      await pass((layer) => (layer === 0 ? 'checkpointed' : 'lean')),
      await pass('checkpointed'),
    ];
    for (const { gradients } of [first, both]) {
      expect(gradients.every((values) => values.some((value) => value !== 0))).toBe(true);
    }
    expect(first.kept).toBeLessThan(0.7 * lean.kept);
    expect(both.kept).toBeLessThan(0.7 * first.kept);
  });
});

describe('MemoryPlanner', () => {
  it('predicts less memory where less is kept, and chooses by the budget', async () => {
    const tuned = await adapted('bf16');
    const rows = 4096;
    const open = (budget: MemoryBudget) => MemoryPlanner.open(tuned, budget, { optimizerBytes: 0 });
    const max = (await open('max')).plan(rows);
    const least = await open('min');
    const min = least.plan(rows);
    const none = { saved: 0, lean: 0, thin: 0, checkpointed: 0 };
    expect(max.layers).toEqual({ ...none, saved: 2 });
    expect(min.layers).toEqual({ ...none, checkpointed: 2 });
    expect(min.bytes).toBeLessThan(max.bytes);
    expect((await open(2 ** 40)).plan(rows).layers).toEqual(max.layers);
    await expect(open(1)).rejects.toThrow('is below the smallest plan');
    expect([max, min].map(({ overBudget }) => overBudget)).toEqual([false, false]);
    // A budget slightly below that of keeping everything: first cheap results are dropped, then layers.
    // The rows are so many that the memory of the process itself, which varies a little, does not matter.
    const many = 2 ** 24;
    const roomy = await open(2 ** 50);
    const lean = (await open(roomy.plan(many).bytes * 0.995)).plan(many);
    expect(lean.layers).toEqual({ ...none, lean: 2 });
    expect(lean.bytes).toBeLessThan(roomy.plan(many).bytes);
    const mixed = (await open(lean.bytes * 0.99)).plan(many);
    expect(mixed.layers).toEqual({ ...none, lean: 1, thin: 1 });
    expect(mixed.bytes).toBeLessThanOrEqual(lean.bytes * 0.99);
    const allThin = 2 * mixed.bytes - lean.bytes;
    const thin = (await open(allThin * 1.001)).plan(many);
    expect(thin.layers).toEqual({ ...none, thin: 2 });
    const between = (await open(thin.bytes * 0.99)).plan(many);
    expect(between.layers).toEqual({ ...none, thin: 1, checkpointed: 1 });
    expect(between.bytes).toBeLessThanOrEqual(thin.bytes * 0.99);
    tuned.model.dispose();
    tuned.dispose();
  });

  it('counts activations in int8 where a run keeps them so, and gradients as they are', async () => {
    const model = await AutoModelForCausalLM.fromConfig(
      {
        model_type: 'llama',
        ...{ vocab_size: 11, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4 },
        ...{ num_attention_heads: 2, num_key_value_heads: 1, rms_norm_eps: 1e-5 },
        ...{ max_position_embeddings: 128, tie_word_embeddings: true },
      },
      { dtype: 'bf16' },
    );
    const tuned = await AdapterModel.create(model, { r: 4, loraAlpha: 4 });
    const rows = 2 ** 20;
    const bytesOf = async (savesInt8: boolean) => {
      const open = (budget: MemoryBudget) =>
        MemoryPlanner.open(tuned, budget, { optimizerBytes: 0, savesInt8 });
      const of = (planner: MemoryPlanner) => planner.plan(rows).bytes / rows;
      return { all: of(await open('max')), least: of(await open('min')) };
    };
    const [exact, int8] = [await bytesOf(false), await bytesOf(true)];
    // For each row a layer keeps twice the stream, q, k, v and the result (2 x 64 + 64 + 2 x 32 + 64), gate and up, both norms and
    // the gate's product (2 x 128 + 2 x 64 + 128): a byte less of each, and a scale of 4 bytes for each of the 10.
    const saved = 1.05 * 4 * (2 * 64 + 64 + 64 + 64 + 256 + 128 + 128 - 10 * 4);
    expect(exact.all - int8.all).toBeGreaterThan(0.8 * saved);
    expect(exact.all - int8.all).toBeLessThan(1.05 * saved);
    expect(Math.abs(exact.least - int8.least)).toBeLessThan(0.1 * exact.least);
    for (const each of [tuned.model, tuned]) each.dispose();
  });

  it('refuses an invalid budget', () => {
    for (const memoryBudget of [0, -1, Number.NaN, 'small' as MemoryBudget]) {
      expect(() => resolveRun({ memoryBudget })).toThrow(/memoryBudget must be/);
    }
  });

  it('leaves no memory behind: the packed weights are freed with the model', async () => {
    await synchronize();
    const before = memoryStats();
    await run('f32', 'min');
    await synchronize();
    const after = memoryStats();
    expect(after.derivedBytes).toBe(before.derivedBytes);
  });
});

it.each(['f32', 'bf16'] as const)(
  'a run over batches of many lengths asks the system for no more memory from epoch to epoch, in %s',
  async (dtype) => {
    const tuned = await adapted(dtype);
    const counts: number[] = [];
    const regularizers = { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02 };
    for await (const event of new Trainer({
      tuned,
      data: tinySource(batches()),
      numTrainEpochs: 12,
      regularizers: { ...regularizers, svdTopK: 2, regularizerSchedule: 'constant' },
    }).run()) {
      if (event.type === 'step') counts.push(memoryStats().deviceAllocations);
    }
    expect(counts).toHaveLength(48);
    // How many ops are queued ahead differs by chance, which may take one more chunk of each of the two heaps. A loop that took more
    // with each epoch would be at 11.
    expect(Number(counts[47]) - Number(counts[3])).toBeLessThanOrEqual(2);
    expect(counts[0]).toBeGreaterThan(0);
    tuned.model.dispose();
    tuned.dispose();
  },
);

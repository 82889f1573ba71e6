/**
 * Bases that are read from the disk as they are used: everything that is computed with them is what it is with a base in memory, bit for
 * bit, and what cannot be done with them is refused. The memory is measured in test/lifetime/base_offload.test.ts.
 */
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it, vi } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import { evaluate } from '../../lib/eval/evaluate.ts';
import { generate } from '../../lib/generate/generate.ts';
import {
  OffloadedBase,
  type OffloadStats,
  offloadFolder,
  requireDiskSpace,
} from '../../lib/io/offload.ts';
import { baseDigest } from '../../lib/models/base_digest.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  type CausalLM,
  checkCausalLM,
  type FromPretrainedOptions,
} from '../../lib/models/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { noGrad, scope, tensor } from '../../lib/tensor.ts';
import type { MemoryBudget } from '../../lib/train/memory_plan.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { values } from '../support/compare.ts';
import { fixturePath } from '../support/fixtures.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { stateValues, timeless } from '../support/run_numbers.ts';
import { tinyBatches, tinySource } from '../support/tiny_model.ts';

/** A disk that has room for nothing, where it is asked for its room. */
const full = vi.hoisted(() => ({ disk: false }));
vi.mock('node:fs/promises', async (original) => {
  const fs = await original<typeof import('node:fs/promises')>();
  const statfs = async (path: string) => {
    const stats = await fs.statfs(path);
    return full.disk ? { ...stats, bavail: 0 } : stats;
  };
  return { ...fs, statfs };
});

const kLlama = fixturePath('architectures/llama-untied-gqa/model');
const kTied = fixturePath('architectures/llama-tied/model');
const kBf16 = fixturePath('architectures/llama-bf16/model');
const kGpt2 = fixturePath('architectures/gpt2/model');
const kGguf = fixturePath('quant/tiny_llama.gguf');

const out = mkdtempSync(join(tmpdir(), 'balora-offload-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));

const load = (folder: string, options: FromPretrainedOptions = {}): Promise<CausalLM> =>
  AutoModelForCausalLM.fromPretrained(folder, options);

const statsOf = ({ offload }: CausalLM): OffloadStats => {
  if (offload === null) throw new Error('the base is in memory');
  return offload.stats();
};

/** The model, with a share of its offloaded weights in memory. */
async function loadOffloaded(
  folder: string,
  options: FromPretrainedOptions,
  share: number,
): Promise<CausalLM> {
  const model = await load(folder, { ...options, baseOffload: true });
  (model.offload as OffloadedBase).residentBytes = share * statsOf(model).totalBytes;
  return model;
}

const kBatch = {
  inputIds: Int32Array.of(3, 9, 4, 1, 7, 7, 2, 60, 11),
  positions: Int32Array.of(0, 1, 2, 3, 4, 0, 1, 2, 3),
  cuSeqlens: Int32Array.of(0, 5, 9),
};

const logitsOf = (model: CausalLM): Float64Array =>
  scope(() => noGrad(() => Float64Array.from(values(model.logits(model.forward(kBatch))))));

/** Each way in which the bytes of weights are had: pages of the file, converted, quantised, in another order, tied and not. */
const kBases: Record<string, [string, FromPretrainedOptions]> = {
  'f32 as in the file': [kLlama, {}],
  'bf16 of a file in f32': [kLlama, { dtype: 'bf16' }],
  'bf16 as in the file': [kBf16, { dtype: 'bf16' }],
  'f32 of a file in bf16': [kBf16, {}],
  'f64, tied': [kTied, { dtype: 'f64' }],
  'stored as (in,out)': [kGpt2, {}],
  'NF4 that is made': [kLlama, { baseFormat: 'nf4', dtype: 'bf16' }],
  'NF4 that is made, in f32': [kTied, { baseFormat: 'nf4' }],
  'blocks of a GGUF file': [kGguf, { baseFormat: 'gguf', dtype: 'bf16' }],
  'values of a GGUF file': [kGguf, { dtype: 'bf16' }],
};

describe.each(Object.entries(kBases))('an offloaded base, %s', (_, [folder, options]) => {
  it.each([0, 0.5, 1])('computes what a base in memory does, %f of it resident', async (share) => {
    const dense = await load(folder, options);
    const wanted = logitsOf(dense);
    const model = await loadOffloaded(folder, options, share);
    expect(logitsOf(model)).toEqual(wanted);
    expect(logitsOf(model)).toEqual(wanted);
    const { presentBytes, totalBytes, residentBytes, readBytes } = statsOf(model);
    expect(presentBytes).toBe(0);
    expect(totalBytes).toBeGreaterThan(0);
    expect(residentBytes).toBeLessThanOrEqual(share * totalBytes);
    if (share === 1) expect([residentBytes, readBytes]).toEqual([totalBytes, totalBytes]);
    // It is the same model.
    expect(await baseDigest(model)).toEqual(await baseDigest(dense));
    model.dispose();
    dense.dispose();
  });
});

const kSteps = 4;

/** The records of a run, without times, and what it trained; a run that is left after `lastStep` can be resumed. */
async function trained(
  model: CausalLM,
  more: Partial<TrainerOptions> = {},
  lastStep = kSteps,
  config: AdapterConfigInput = { method: 'balora', r: 4, loraAlpha: 4 },
): Promise<{ records: unknown[]; state: Record<string, number[]> }> {
  const tuned = await createCalibrated(model, config);
  const trainer = new Trainer({
    ...{ tuned, data: tinySource(tinyBatches({ count: kSteps })), maxSteps: kSteps },
    ...{ learningRate: 0.01, ...more },
  });
  const records: unknown[] = [];
  for await (const event of trainer.run()) {
    if (event.type !== 'step') continue;
    records.push(timeless(event.record));
    if (event.record.step === lastStep && lastStep < kSteps) break;
  }
  const state = stateValues(tuned);
  tuned.dispose();
  return { records, state };
}

describe('training on an offloaded base', () => {
  const kForms: [string, string, FromPretrainedOptions][] = [
    ['bf16', kBf16, { dtype: 'bf16' }],
    ['f32', kLlama, {}],
    ['NF4', kLlama, { baseFormat: 'nf4', dtype: 'bf16' }],
    ['GGUF blocks', kGguf, { baseFormat: 'gguf', dtype: 'bf16' }],
  ];

  it.each(
    kForms.flatMap((form) =>
      [false, true].map((checkpointing) => [...form, checkpointing] as const),
    ),
  )(
    'has the losses, gradients and weights of one in memory: %s, %s, %o, checkpointed: %s',
    async (_, folder, options, checkpointing) => {
      const dense = await load(folder, options);
      const model = await loadOffloaded(folder, options, 0.4);
      dense.gradientCheckpointing = checkpointing;
      model.gradientCheckpointing = checkpointing;
      const wanted = await trained(dense);
      const found = await trained(model);
      expect(found).toEqual(wanted);
      expect(found.records).toHaveLength(kSteps);
      // The teacher's pass, the student's and the backward one, and what is computed again.
      const { readBytes, totalBytes } = statsOf(model);
      expect(readBytes).toBeGreaterThan(totalBytes);
      model.dispose();
      dense.dispose();
    },
  );

  it.each(kMethodConfigs.filter(([name]) => name !== 'balora'))(
    'has those of one in memory with the method %s',
    async (_, config) => {
      const regularizers = { consistencyWeight: 0.1 };
      const found = [];
      for (const baseOffload of [false, true]) {
        const model = await (baseOffload ? loadOffloaded(kLlama, {}, 0.4) : load(kLlama));
        found.push(await trained(model, { regularizers }, kSteps, config));
        model.dispose();
      }
      expect(found[1]).toEqual(found[0]);
    },
  );

  it.each(['min', 'max', 2 ** 40] as MemoryBudget[])(
    'has those of one in memory with the budget %s',
    async (memoryBudget) => {
      const dense = await load(kBf16, { dtype: 'bf16' });
      const model = await loadOffloaded(kBf16, { dtype: 'bf16' }, 0.4);
      const share = model.offload?.residentBytes as number;
      const wanted = await trained(dense, { memoryBudget });
      expect(await trained(model, { memoryBudget })).toEqual(wanted);
      const { totalBytes } = statsOf(model);
      const resident = { min: 0, max: share }[String(memoryBudget)] ?? totalBytes;
      expect(model.offload?.residentBytes).toBe(resident);
      model.dispose();
      dense.dispose();
    },
  );

  it('is resumed with and without it', async () => {
    const runs = [];
    for (const [i, [before, after]] of (
      [
        [false, false],
        [true, false],
        [false, true],
        [true, true],
      ] as [boolean, boolean][]
    ).entries()) {
      const output = join(out, `resumed-${i}`);
      const half = async (
        baseOffload: boolean,
        more: Partial<TrainerOptions>,
        lastStep: number,
      ) => {
        const model = await load(kLlama, { dtype: 'bf16', baseOffload });
        const result = await trained(model, { output, ...more }, lastStep);
        model.dispose();
        return result;
      };
      await half(before, {}, 2);
      runs.push(await half(after, { resume: true }, kSteps));
    }
    for (const run of runs.slice(1)) expect(run).toEqual(runs[0]);
    expect(runs[0]?.records).toHaveLength(2);
  });
});

describe('an offloaded base', () => {
  it('generates and is evaluated as one in memory', async () => {
    const dense = await load(kBf16, { dtype: 'bf16' });
    const model = await loadOffloaded(kBf16, { dtype: 'bf16' }, 0.4);
    const found = [];
    for (const each of [dense, model]) {
      const tuned = await AdapterModel.create(each, { method: 'balora', r: 2, loraAlpha: 2 });
      const texts = await generate(tuned, { ids: [[3, 9, 4], [5]], maxNewTokens: 8 }).result;
      const tokens = texts.map((text) => text.tokens);
      expect(tokens.map(({ length }) => length)).toEqual([8, 8]);
      const batches = tinyBatches({ count: 3 });
      const { loss, kl } = await evaluate(tuned, batches);
      found.push({ tokens, loss, kl });
      tuned.dispose();
    }
    expect(found[1]).toEqual(found[0]);
    model.dispose();
    dense.dispose();
  });

  it('is merged into the same files', async () => {
    const files = [];
    for (const baseOffload of [false, true]) {
      const model = await load(kBf16, { dtype: 'bf16', baseOffload });
      const tuned = await AdapterModel.create(model, { r: 2, loraAlpha: 2 });
      const output = join(out, `merged-${baseOffload}`);
      await saveMerged(tuned, output);
      files.push(readFileSync(join(output, 'model.safetensors')));
      tuned.dispose();
      model.dispose();
    }
    expect(files[1]?.equals(files[0] as Buffer)).toBe(true);
  });

  it('keeps no packed copies of its weights', async () => {
    const packed = [];
    for (const baseOffload of [false, true]) {
      const before = memoryStats().derivedBytes;
      const model = await load(kLlama, { baseOffload });
      logitsOf(model);
      await synchronize();
      packed.push(memoryStats().derivedBytes - before);
      model.dispose();
    }
    expect(packed[0]).toBeGreaterThan(0);
    expect(packed[1]).toBe(0);
  });

  it('keeps nothing of an adapter, whose packed factors text generation keeps beside a base in memory', async () => {
    const packed = [];
    for (const baseOffload of [false, true]) {
      const model = await load(kBf16, { dtype: 'bf16', baseOffload });
      const tuned = await AdapterModel.create(model, { r: 2, loraAlpha: 2 });
      const before = memoryStats().derivedBytes;
      await generate(tuned, { ids: [1, 2, 3], maxNewTokens: 2 }).result;
      packed.push(memoryStats().derivedBytes - before);
      tuned.dispose();
      model.dispose();
    }
    expect(packed[0]).toBeGreaterThan(0);
    expect(packed[1]).toBe(0);
  });

  it('leaves what two processes or models share alone', async () => {
    const [one, two] = [
      await loadOffloaded(kBf16, { dtype: 'bf16' }, 0),
      await loadOffloaded(kBf16, { dtype: 'bf16' }, 0.7),
    ];
    const dense = await load(kBf16, { dtype: 'bf16' });
    const wanted = logitsOf(dense);
    expect([logitsOf(one), logitsOf(two), logitsOf(dense)]).toEqual([wanted, wanted, wanted]);
    one.dispose();
    expect([logitsOf(two), logitsOf(dense)]).toEqual([wanted, wanted]);
    two.dispose();
    expect(logitsOf(dense)).toEqual(wanted);
    dense.dispose();
  });

  it('is refused where it cannot be', async () => {
    await expect(load(kLlama, { baseOffload: true, trainable: true })).rejects.toThrow(
      /baseOffload: the weights of an offloaded base are frozen, and trainable asks/,
    );
    await expect(load(kLlama, { baseOffload: 'yes' as never })).rejects.toThrow(/baseOffload/);
    const classifier = { numLabels: 2, baseOffload: true };
    await expect(
      AutoModelForSequenceClassification.fromPretrained(kLlama, classifier),
    ).rejects.toThrow(/baseOffload is for causal language models/);
    const model = await load(kLlama, { baseOffload: true });
    expect(() => new FullModel(model)).toThrow(
      /full fine-tuning trains every weight, and the weights of an offloaded base are frozen/,
    );
    model.dispose();
  });

  it('has its cache on a disk with room for it', async () => {
    const missing = join(out, 'missing');
    const converted = { baseOffload: true, dtype: 'bf16', offloadFolder: missing } as const;
    await expect(load(kLlama, converted)).rejects.toThrow(
      /missing: takes no cache of an offloaded base: .* name another folder with offloadFolder/,
    );
    // Bytes that the file holds as they are used need no cache.
    const folder = join(out, 'copied');
    cpSync(kBf16, folder, { recursive: true });
    (await load(folder, converted)).dispose();
    const without = { ...converted, offloadFolder: out };
    full.disk = true;
    for (const open of [load, checkCausalLM]) {
      await expect(open(kLlama, without)).rejects.toThrow(
        /the cache of an offloaded base takes .*, and 0 B are free; name another folder with offloadFolder/,
      );
    }
    full.disk = false;
    await expect(requireDiskSpace(out, 2 ** 60)).rejects.toMatchObject({
      code: 'ERR_DISK_FULL',
      message: expect.stringMatching(
        /the cache of an offloaded base takes 1048576.0 TiB, and .* are free; name another folder with offloadFolder/,
      ),
    });
    expect(existsSync(offloadFolder())).toBe(true);
    if (!existsSync('/dev/shm') || statfsSync('/dev/shm').type !== 0x01021994) return;
    let read = 0;
    const inMemory = { ...converted, offloadFolder: '/dev/shm', onProgress: () => read++ };
    for (const open of [load, checkCausalLM]) {
      await expect(open(kLlama, inMemory)).rejects.toThrow(
        /\/dev\/shm: is in memory \(tmpfs\), .* name another folder with offloadFolder/,
      );
    }
    expect(read).toBe(0);
  });

  it('counts all weights of a layer together, those of its experts too', async () => {
    const base = new OffloadedBase(offloadFolder());
    const add = (name: string, size: number) =>
      base.add(tensor(new Float32Array(size)), { name, isTable: false });
    const weights = [
      add('model.layers.0.mlp.experts.0.w1.weight', 100),
      add('model.layers.0.mlp.experts.1.w1.weight', 100),
      add('model.layers.0.self_attn.q_proj.weight', 50),
      add('model.layers.1.self_attn.q_proj.weight', 20),
      add('lm_head.weight', 300),
    ];
    expect(base.aheadBytes).toBe(2 * 4 * 250);
    for (const weight of weights) weight.dispose();
    await synchronize();
    base.close();
  });
});

/** The cache files that this process has open in a folder. */
const cachesIn = (folder: string): string[] =>
  readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      const path = readlinkSync(`/proc/self/fd/${fd}`);
      return path.startsWith(folder) ? [path] : [];
    } catch {
      return []; // the descriptor of the folder itself
    }
  });

describe('a load that fails', () => {
  /** A copy of the model with NaN at the end of its last weight. */
  function damaged(): string {
    const folder = join(out, 'damaged');
    cpSync(kLlama, folder, { recursive: true });
    const path = join(folder, 'model.safetensors');
    const bytes = readFileSync(path);
    bytes.fill(0xff, bytes.length - 4);
    writeFileSync(path, bytes);
    return folder;
  }
  const kFailures: [string, FromPretrainedOptions, RegExp, () => string][] = [
    [
      'in the middle',
      {
        onProgress: (loaded) => {
          if (loaded === 9) throw new Error('enough');
        },
      },
      /enough/,
      () => kLlama,
    ],
    ['at its end', {}, /is NaN or infinite/, damaged],
  ];

  it.each(
    kFailures.flatMap(([when, ...rest]) =>
      [true, false].map((baseOffload) => [when, baseOffload, ...rest] as const),
    ),
  )('%s keeps nothing, offloaded: %s', async (_, baseOffload, options, message, folder) => {
    const offloadFolder = join(out, `cache-${options.onProgress === undefined}`);
    mkdirSync(offloadFolder, { recursive: true });
    const path = folder();
    await collectGarbage();
    await synchronize();
    const before = memoryStats().liveBytes;
    const given = { baseFormat: 'nf4', dtype: 'bf16', ...options } as const;
    await expect(load(path, { ...given, baseOffload, offloadFolder })).rejects.toThrow(message);
    expect(memoryStats().liveBytes).toBe(before);
    if (existsSync('/proc/self/fd')) expect(cachesIn(offloadFolder)).toEqual([]);
    // Nothing is left for others to find.
    await synchronize();
  });
});

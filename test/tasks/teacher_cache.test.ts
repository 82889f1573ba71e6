// A cached teacher gives the same results as the live one, over epochs and interruptions, and is refused where it could not.
import {
  chmodSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { ArgumentError, UnsupportedError } from '../../lib/errors.ts';
import { BaLoraLoss } from '../../lib/losses/balora.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { opTimes, resetOpTimes, synchronize } from '../../lib/runtime.ts';
import { type CachedSequence, TeacherCache } from '../../lib/tasks/teacher_cache.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import type { Batch, StepRecord } from '../../lib/train/types.ts';
import { randomTensor } from '../support/gradcheck.ts';
import { numbersOf } from '../support/run_numbers.ts';
import { TinyModel, tinySource } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-cache-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** The sequence with the number s of a small set. */
const sequence = (s: number) => ({
  ids: Array.from({ length: 5 + (s % 3) * 4 }, (_, t) => (3 * s + 7 * t) % 17),
  prompt: 1 + (s % 2),
});

/** Some of the sequences as a micro-batch. */
function batchOf(sequences: readonly number[]): Batch {
  const ids = sequences.map((s) => sequence(s).ids);
  const ends = [0];
  for (const row of ids) ends.push((ends.at(-1) as number) + row.length);
  return {
    inputIds: Int32Array.from(ids.flat()),
    positions: Int32Array.from(ids.flatMap((row) => row.map((_, t) => t))),
    cuSeqlens: Int32Array.from(ends),
    targets: Int32Array.from(
      ids.flatMap((row, i) =>
        row.map((_, t) => {
          const { prompt } = sequence(sequences[i] as number);
          return t + 1 < row.length && t + 1 >= prompt ? (row[t + 1] as number) : -100;
        }),
      ),
    ),
  };
}

/** A source of two micro-batches per epoch, with other groups of sequences in every second epoch. */
const data = (firstEpoch = 0) => ({
  fingerprint: 'test',
  batchCount: () => 2,
  *batches(epoch: number, start: number) {
    const order =
      (epoch + firstEpoch) % 2 === 0
        ? [
            [0, 1, 2],
            [3, 4],
          ]
        : [
            [4, 2],
            [1, 3, 0],
          ];
    yield* order.slice(start).map(batchOf);
  },
});

class CappedModel extends TinyModel {
  override get head() {
    return { ...super.head, softcap: 30 };
  }
}

const kRegularizers = { consistencyWeight: 0.5, diversityWeight: 0.1, svdWeight: 0.1, svdTopK: 2 };

/** Does some work as a user whom permissions bind, which they do not root. */
async function asOrdinaryUser<T>(work: () => Promise<T>): Promise<T> {
  const { geteuid, seteuid } = process;
  if (geteuid?.() !== 0 || seteuid === undefined) return work();
  seteuid(65_534);
  try {
    return await work();
  } finally {
    seteuid(0);
  }
}

interface RunOptions {
  cacheTeacher?: boolean;
  teacherCache?: string;
  temperature?: number;
  r?: number;
  initLoraWeights?: true | 'pissa_niter_4';
  /** The epoch of the data that comes first. */
  firstEpoch?: number;
  dtype?: 'f32' | 'bf16';
  consistencySchedule?: 'constant' | 'adaptive';
  positions?: 'supervised' | 'non_padding';
  output?: string;
  overwrite?: boolean;
  resume?: boolean;
  stopAfter?: number;
  learningRate?: number;
  /** Seed of the model's weights. */
  seed?: number;
  onStep?: () => Promise<void>;
}

async function run(options: RunOptions = {}) {
  const { dtype = 'f32', stopAfter = 9, output, learningRate = 0.02 } = options;
  const { overwrite = false, resume = false } = options;
  const { consistencySchedule = 'constant', positions = 'supervised', seed = 1 } = options;
  const { r = 2, initLoraWeights = 'pissa_niter_4', teacherCache, temperature } = options;
  const tuned = await AdapterModel.create(
    new TinyModel({ dtype, vocabulary: 17, width: 8, seed }),
    {
      ...{ r, initLoraWeights },
      loraAlpha: 4,
    },
  );
  const stop = new AbortController();
  const records: StepRecord[] = [];
  const warnings: string[] = [];
  resetOpTimes();
  for await (const event of new Trainer({
    tuned,
    data: data(options.firstEpoch),
    numTrainEpochs: 3,
    learningRate,
    lrSchedulerType: 'constant',
    regularizers: {
      ...{ ...kRegularizers, consistencySchedule, positions },
      ...(temperature !== undefined && { temperature }),
    },
    cacheTeacher: options.cacheTeacher ?? false,
    ...(teacherCache !== undefined && { teacherCache }),
    signal: stop.signal,
    ...(output === undefined ? {} : { output, overwrite, resume }),
  }).run()) {
    if (event.type === 'warning') warnings.push(event.message);
    if (event.type !== 'step') continue;
    records.push(event.record);
    await options.onStep?.();
    if (event.record.step === stopAfter) stop.abort();
  }
  await synchronize();
  const teacherOps = opTimes().filter(({ phase, op }) => phase === 'teacher' && op === 'linear');
  const parameters = await Promise.all(tuned.parameters().map(({ tensor }) => tensor.data()));
  tuned.dispose();
  tuned.model.dispose();
  return {
    records,
    warnings,
    parameters,
    teacherCalls: teacherOps.reduce((sum, { calls }) => sum + calls, 0),
  };
}

const numbers = (records: readonly StepRecord[]) =>
  records.map((record) => [...numbersOf(record), Number(record.terms.consistency?.weight)]);

describe('a cached teacher', () => {
  it.each([
    ['constant', 'supervised'],
    ['adaptive', 'supervised'],
    ['constant', 'non_padding'],
  ] as const)('equals the live one over three epochs: %s, %s', async (schedule, positions) => {
    const live = await run({ consistencySchedule: schedule, positions });
    const kept = await run({ consistencySchedule: schedule, positions, cacheTeacher: true });
    expect(kept.records).toHaveLength(6);
    // The teacher runs once for each batch of the first epoch; later batches use the cache.
    expect(kept.teacherCalls).toBe(live.teacherCalls / 3);
    const found = numbers(kept.records);
    numbers(live.records).forEach((row, step) => {
      row.forEach((value, i) => {
        const difference = Math.abs(((found[step] as number[])[i] as number) - value);
        expect(difference).toBeLessThanOrEqual(2e-5 * Math.max(1, Math.abs(value)));
      });
    });
  });

  it('in bf16 is as close to f32 as the live one, except for a rounding of dZ', async () => {
    const still = { learningRate: 0 };
    const exact = numbers((await run(still)).records);
    const live = numbers((await run({ ...still, dtype: 'bf16' })).records);
    const kept = numbers((await run({ ...still, dtype: 'bf16', cacheTeacher: true })).records);
    exact.forEach((row, step) => {
      row.forEach((truth, i) => {
        const [ours, theirs] = [kept, live].map((all) =>
          Math.abs(((all[step] as number[])[i] as number) - truth),
        ) as [number, number];
        expect(ours).toBeLessThanOrEqual(theirs + 2 ** -8 * Math.max(1, Math.abs(truth)));
      });
    });
  });

  it('is read from its file after an interruption, bit for bit', async () => {
    const whole = await run({ cacheTeacher: true });
    const output = join(folder, 'out');
    const first = await run({ cacheTeacher: true, output, stopAfter: 3 });
    expect(first.records).toHaveLength(3);
    const file = join(output, 'run', 'teacher_cache.bin');
    expect(statSync(file).size).toBeGreaterThan(512);
    const rest = await run({ cacheTeacher: true, output, resume: true });
    expect(numbers([...first.records, ...rest.records])).toEqual(numbers(whole.records));
    expect(rest.parameters).toEqual(whole.parameters);
    expect(rest.teacherCalls).toBe(0);
    expect(() => statSync(file)).toThrow(); // a completed run removes the file
    await expect(run({ output, resume: true })).rejects.toThrow(/cacheTeacher: was true/);
  });

  it('of another base model is not used, also where no checkpoint identifies it', async () => {
    const output = join(folder, 'out');
    const killed = run({
      cacheTeacher: true,
      output,
      onStep: () => Promise.reject(new Error('x')),
    });
    await expect(killed).rejects.toThrow('x');
    // The state after a SIGKILL, since an error would leave a checkpoint.
    rmSync(join(output, 'run', 'checkpoints'), { recursive: true });
    expect(statSync(join(output, 'run', 'teacher_cache.bin')).size).toBeGreaterThan(512);
    const fresh = await run({ cacheTeacher: true, seed: 2 });
    const resumed = await run({ cacheTeacher: true, seed: 2, output, resume: true });
    expect(numbers(resumed.records)).toEqual(numbers(fresh.records));
    expect(resumed.teacherCalls).toBe(fresh.teacherCalls);
  });

  describe('in a file that runs share', () => {
    const shared = () => ({ teacherCache: join(folder, 'teacher.cache') });

    it('saves a later run the teacher, whatever its rank, method, rate and order of rows', async () => {
      const file = shared();
      const own = await run({ cacheTeacher: true });
      const first = await run(file);
      expect(numbers(first.records)).toEqual(numbers(own.records));
      expect(first.teacherCalls).toBe(own.teacherCalls);
      const second = await run(file);
      expect(numbers(second.records)).toEqual(numbers(first.records));
      expect(second.parameters).toEqual(first.parameters);
      expect(second.teacherCalls).toBe(0);
      const other = { r: 3, learningRate: 0.01, firstEpoch: 1, initLoraWeights: true } as const;
      const alone = await run({ ...other, cacheTeacher: true });
      const after = await run({ ...other, ...file });
      expect(after.teacherCalls).toBe(0);
      numbers(alone.records).forEach((row, step) => {
        row.forEach((value, i) => {
          const difference = Math.abs(
            ((numbers(after.records)[step] as number[])[i] as number) - value,
          );
          expect(difference).toBeLessThanOrEqual(2e-6 * Math.max(1, Math.abs(value)));
        });
      });
    });

    it('is usable after a run was killed, and extended by the next', async () => {
      const file = shared();
      const killed = run({ ...file, onStep: () => Promise.reject(new Error('x')) });
      await expect(killed).rejects.toThrow('x');
      truncateSync(file.teacherCache, statSync(file.teacherCache).size - 5);
      const whole = await run({ cacheTeacher: true });
      const next = await run(file);
      expect(numbers(next.records)).toEqual(numbers(whole.records));
      expect((await run(file)).teacherCalls).toBe(0);
    });

    it('is read by a run beside the one that appends to it', async () => {
      const file = shared();
      let inner: Awaited<ReturnType<typeof run>> | null = null;
      const outer = await run({
        ...file,
        onStep: async () => {
          inner ??= await run({ ...file, stopAfter: 1 });
        },
      });
      const { teacherCalls, warnings } = inner as unknown as Awaited<ReturnType<typeof run>>;
      expect(teacherCalls).toBe(0);
      expect(warnings).toEqual([
        expect.stringMatching(/teacher\.cache: process \d+ on .* appends to this cache/),
      ]);
      expect(outer.warnings).toEqual([]);
      expect((await run(file)).teacherCalls).toBe(0);
    });

    it.each([
      ['that this user may not write', 0o444, 0o777, 'this cache cannot be written'],
      [
        'in a folder that it may not write',
        0o666,
        0o555,
        'the lock of this cache cannot be written',
      ],
    ])('is read where it is a file %s, without a lock', async (_, mode, folderMode, reason) => {
      const file = shared();
      const whole = await run(file);
      const held = readFileSync(file.teacherCache);
      const asOther = async (options: RunOptions) => {
        chmodSync(file.teacherCache, mode);
        chmodSync(folder, folderMode);
        return asOrdinaryUser(() => run(options)).finally(() => chmodSync(folder, 0o700));
      };
      const others = await asOther(file);
      expect(others.warnings).toEqual([
        `${file.teacherCache}: ${reason}: permission denied (EACCES); this run reads it and keeps nothing in it`,
      ]);
      expect(others.teacherCalls).toBe(0);
      expect(numbers(others.records)).toEqual(numbers(whole.records));
      // Rows that the file lacks are computed, and not kept.
      expect((await asOther({ ...file, positions: 'non_padding' })).teacherCalls).toBeGreaterThan(
        0,
      );
      expect(readFileSync(file.teacherCache).equals(held)).toBe(true);
      expect(readdirSync(folder)).toEqual(['teacher.cache']);
    });

    it('is refused where it is not there, and its folder may not be written', async () => {
      chmodSync(folder, 0o555);
      await expect(
        asOrdinaryUser(() => run(shared())).finally(() => chmodSync(folder, 0o700)),
      ).rejects.toThrow(/teacher\.cache\.lock: cannot write: permission denied/);
    });

    it('refuses a foreign file before an output folder is made, or emptied for a run that overwrites it', async () => {
      const file = shared();
      await run(file);
      const [fresh, earlier] = [join(folder, 'fresh'), join(folder, 'earlier')];
      await run({ output: earlier, stopAfter: 2 });
      const left = readdirSync(earlier, { recursive: true }).sort();
      const foreign = { ...file, temperature: 3 };
      await expect(run({ ...foreign, output: fresh })).rejects.toThrow(/temperature is 2, not 3/);
      expect(readdirSync(folder)).not.toContain('fresh');
      await expect(run({ ...foreign, output: earlier, overwrite: true })).rejects.toThrow(
        /temperature is 2, not 3/,
      );
      expect(readdirSync(earlier, { recursive: true }).sort()).toEqual(left);
    });

    it('refuses a file of another base, type or temperature, and a damaged or foreign one', async () => {
      const file = shared();
      await run(file);
      const held = readFileSync(file.teacherCache);
      await expect(run({ ...file, seed: 2 })).rejects.toThrow(
        /teacher\.cache: it holds outputs of another teacher: its base is .*; choose another file/,
      );
      await expect(run({ ...file, dtype: 'bf16' })).rejects.toThrow(/dtype is "f32", not "bf16"/);
      await expect(run({ ...file, temperature: 3 })).rejects.toThrow(/temperature is 2, not 3/);
      expect(readFileSync(file.teacherCache)).toEqual(held);
      for (const at of [512 + 3, 512 + 17, 512 + 30]) {
        const damaged = Buffer.from(held);
        damaged[at] = (damaged[at] as number) ^ 0x40;
        writeFileSync(file.teacherCache, damaged);
        await expect(run(file)).rejects.toThrow(
          /teacher\.cache: the record at byte 512 is damaged; remove the file/,
        );
      }
      for (const [wanted, found] of [
        ['"dtype"', '"btype"'],
        ['    ', '  \n '],
      ] as const) {
        const at = held.indexOf(wanted);
        const damaged = Buffer.from(held);
        damaged.write(found, at);
        writeFileSync(file.teacherCache, damaged);
        await expect(run(file)).rejects.toThrow(/teacher\.cache: its head is damaged; choose/);
      }
      writeFileSync(file.teacherCache, 'a text');
      await expect(run(file)).rejects.toThrow(/is not a cache of a teacher's outputs/);
      expect(readFileSync(file.teacherCache, 'utf8')).toBe('a text');
      await expect(run({ teacherCache: folder })).rejects.toThrow(/is a folder/);
      await expect(run({ teacherCache: join(folder, 'no', 'file') })).rejects.toThrow(/no.file/);
      await expect(run({ ...file, cacheTeacher: true })).rejects.toThrow(
        /cacheTeacher and teacherCache exclude each other/,
      );
    });
  });

  it('is refused with a dynamic rope, which depends on the longest sequence of a batch', async () => {
    const rope = { rope_type: 'dynamic', factor: 2, rope_theta: 10_000 };
    const sizes = { vocab_size: 17, hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1 };
    const heads = { num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 8 };
    const model = await AutoModelForCausalLM.fromConfig({
      ...{ model_type: 'llama', rope_parameters: rope, ...sizes, ...heads },
      ...{ rms_norm_eps: 1e-5, tie_word_embeddings: true, hidden_act: 'silu' },
    });
    const tuned = await AdapterModel.create(model, { r: 2 });
    const trainer = (longest?: number) =>
      new Trainer({
        ...{ tuned, regularizers: kRegularizers, cacheTeacher: true },
        data: { ...data(), ...(longest !== undefined && { statistics: { longest } }) },
      });
    expect(() => trainer(9)).toThrow(
      /beyond 8 tokens the dynamic rope.*longest one of the data has 9/,
    );
    expect(() => trainer()).toThrow(/longest one of the data is not known/);
    trainer(8);
    tuned.dispose();
    model.dispose();
  });

  it('is refused with options that would change the teacher', async () => {
    const tuned = await AdapterModel.create(new TinyModel({}), { r: 2 });
    const input = { tuned, data: tinySource([batchOf([0])]), maxSteps: 1, cacheTeacher: true };
    const regularizers = kRegularizers;
    expect(() => new Trainer(input)).toThrow(ArgumentError);
    expect(
      () => new Trainer({ ...input, regularizers, loss: () => ({ loss: 0 as never }) }),
    ).toThrow(/runs the teacher itself/);
    const over = await AdapterModel.create(new CappedModel({}), { r: 2 });
    expect(() => new Trainer({ ...input, tuned: over, regularizers })).toThrow(UnsupportedError);
    over.dispose();
    Object.defineProperty(tuned, 'trainsHead', { value: true });
    expect(() => new Trainer({ ...input, regularizers })).toThrow(/is trained/);
    tuned.dispose();
    tuned.model.dispose();
  });
});

describe('TeacherCache', () => {
  const sequencesOf = ({ inputIds, positions, cuSeqlens, lengths }: Batch): CachedSequence[] =>
    Array.from({ length: cuSeqlens.length - 1 }, (_, b) => {
      const [begin, end] = [cuSeqlens[b] as number, cuSeqlens[b + 1] as number];
      const real = begin + (lengths?.[b] ?? end - begin);
      const own = {
        ids: inputIds.subarray(begin, real),
        positions: positions.subarray(begin, real),
      };
      return { ...own, begin, end };
    });
  const kind = { model: 'm', dtype: 'f32', channels: 8, vocabulary: 17, temperature: 2 };
  const head = { weight: randomTensor([17, 8], { seed: 1, dtype: 'f32' }) };
  const loss = new BaLoraLoss(head);
  const fill = async (cache: TeacherCache, batch: Batch, seed = 2) => {
    const hidden = randomTensor([batch.inputIds.length, 8], { seed, dtype: 'f32' });
    const summary = loss.summarize(hidden, loss.select(batch));
    await cache.add(sequencesOf(batch), loss.select(batch), summary);
    return Array.from((await summary.mean.data()) as Float32Array);
  };
  const take = async (cache: TeacherCache, batch: Batch) => {
    const summary = cache.get(sequencesOf(batch), loss.select(batch));
    return summary && Array.from((await summary.mean.data()) as Float32Array);
  };

  it('finds sequences in other batches, and after it was opened again', async () => {
    const path = join(folder, 'cache');
    const cache = new TeacherCache({ path }, kind);
    const mean = await fill(cache, batchOf([0, 1]));
    const rows = loss.select(batchOf([0])).rows.length * 8;
    expect(await take(cache, batchOf([1, 0]))).toEqual([
      ...mean.slice(rows),
      ...mean.slice(0, rows),
    ]);
    expect(await take(cache, batchOf([0, 3]))).toBeNull();
    cache.close();
    const again = new TeacherCache({ path }, kind);
    expect(again.size).toBe(2);
    expect(await take(again, batchOf([0, 1]))).toEqual(mean);
    again.close();
  });

  it('knows the same ids at other positions, and other rows of them, as others', async () => {
    const cache = new TeacherCache({ path: null }, kind);
    const batch = batchOf([0, 1]);
    await fill(cache, batch);
    const shifted = { ...batch, positions: batch.positions.map((position) => position + 1) };
    expect(await take(cache, shifted)).toBeNull();
    const fewer = { ...batch, targets: batch.targets.with(3, -100) };
    expect(await take(cache, fewer)).toBeNull();
    expect(await take(cache, batch)).not.toBeNull();
    await fill(cache, shifted, 3);
    expect(await take(cache, shifted)).not.toEqual(await take(cache, batch));
    cache.close();
  });

  it('discards an incomplete record, and all records of another model', async () => {
    const path = join(folder, 'cache');
    const cache = new TeacherCache({ path }, kind);
    await fill(cache, batchOf([0, 1]));
    cache.close();
    truncateSync(path, statSync(path).size - 3);
    const torn = new TeacherCache({ path }, kind);
    expect(torn.size).toBe(1);
    expect(await take(torn, batchOf([0]))).not.toBeNull();
    expect(await take(torn, batchOf([1]))).toBeNull();
    torn.close();
    const other = new TeacherCache({ path }, { ...kind, temperature: 3 });
    expect(other.size).toBe(0);
    other.close();
  });

  it('removes its temporary file', () => {
    new TeacherCache({ path: null }, kind).close();
  });
});

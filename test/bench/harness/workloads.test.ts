// The choice of rows for a run, and the micro-batches of a workload.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { encoderData } from '../../../bench/harness/encoder_batches.ts';
import { missingFeature } from '../../../bench/harness/features.ts';
import {
  chooseSeries,
  growthSeries,
  kSeries,
  leastBytes,
  type PointPlan,
  type SeriesPlan,
} from '../../../bench/harness/growth.ts';
import { ratioRow } from '../../../bench/harness/ratios.ts';
import { mergeRuns } from '../../../bench/harness/row_maker.ts';
import { growthTable } from '../../../bench/harness/tables.ts';
import { pairsOf, torchRate } from '../../../bench/harness/torch.ts';
import { recipeRows } from '../../../bench/harness/torch_inputs.ts';
import type { Workload } from '../../../bench/harness/types.ts';
import { TimedSource, workloadData } from '../../../bench/harness/workload_batches.ts';
import { choosePlans, kPlans } from '../../../bench/harness/workloads.ts';
import type { Batch } from '../../../lib/data/collate.ts';
import type { LabelledBatch } from '../../../lib/data/labelled_batches.ts';
import { ArgumentError } from '../../../lib/errors.ts';
import { stepRow } from '../../support/bench_reports.ts';
import { writeTinyCheckpoint } from '../../support/tiny_checkpoint.ts';

const namesOf = (only: string[]): string[] => choosePlans(only).map(({ name }) => name);

describe('choosePlans', () => {
  it('knows no name twice', () => {
    const names = kPlans.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
    expect(names).toEqual(expect.arrayContaining(['balora-4x512', 'lora-4x512', 'balora-gsm8k']));
  });

  it('accepts names, groups and prefixes', () => {
    expect(namesOf(['lora-gsm8k'])).toEqual(['lora-gsm8k']);
    const inGroups = kPlans.filter(({ byName, kind }) => byName !== true && kind !== 'method');
    expect(namesOf(['all'])).toHaveLength(inGroups.length);
    expect(namesOf(['pissa'])).toEqual(['pissa-converged', 'pissa-niter-16']);
    expect(namesOf(['micro-linear-qkv*'])).toHaveLength(5);
  });

  it('chooses rows for GPUs only by their names', () => {
    for (const group of ['all', 'steps', 'pissa', 'micro']) {
      expect(namesOf([group]).filter((name) => /no-graphs|r128$|128k/.test(name))).toEqual([
        ...(group === 'all' || group === 'steps'
          ? ['balora-r128', 'lora-r128', 'balora-4x512-r128', 'lora-4x512-r128']
          : []),
      ]);
    }
    const named = ['lora-4x512-no-graphs', 'pissa-converged-r128', 'lora-overhead-r128'];
    expect(namesOf([...named, 'micro-head-losses-8192x128k'])).toEqual([
      ...named,
      'micro-head-losses-8192x128k',
    ]);
  });

  it('adds the rows that a ratio needs, before it', () => {
    expect(namesOf(['balora-over-lora'])).toEqual([
      'balora-4x512',
      'lora-4x512',
      'balora-over-lora',
    ]);
  });

  it('refuses an unknown name with a list of the known ones', () => {
    expect(() => choosePlans(['balora-4x513'])).toThrow(ArgumentError);
    expect(() => choosePlans(['balora-4x513'])).toThrow(/balora-4x512/);
    expect(() => choosePlans(['none*'])).toThrow(ArgumentError);
  });
});

describe('growth', () => {
  it('chooses series by name, group and prefix', () => {
    expect(chooseSeries(['growth'])).toHaveLength(12);
    expect(chooseSeries(['growth-smollm2-360m*'])).toHaveLength(4);
    expect(chooseSeries(['growth-smollm2-135m-rank'])).toHaveLength(1);
    expect(chooseSeries(['all'])).toEqual([]);
    expect(chooseSeries(['growth-bases'], { trial: true }).map(({ name }) => name)).toEqual([
      'growth-bases-tiny-dense',
      'growth-bases-tiny-nf4',
    ]);
  });

  it('compares bases in values and in blocks over lengths and over shapes, whose points series share', () => {
    const bases = chooseSeries(['growth-bases']);
    const models = bases.filter(({ axis }) => axis === 'parameters');
    expect(models.map(({ name }) => name)).toEqual([
      'growth-bases-models-dense',
      'growth-bases-models-nf4',
    ]);
    const parameters = models[1]?.points.map(({ x }) => Math.round(x / 1e6));
    expect(parameters).toEqual([135, 362, 1100, 6738]);
    const ofLengths = bases.filter(({ axis }) => axis === 'length');
    expect(ofLengths.map(({ name }) => name.replace('growth-bases-', ''))).toEqual([
      ...['smollm2-135m-dense', 'smollm2-360m-dense', 'tinyllama-1.1b-dense'],
      ...['smollm2-135m-nf4', 'smollm2-360m-nf4', 'tinyllama-1.1b-nf4', 'llama-7b-nf4'],
    ]);
    const shared = ofLengths
      .flatMap(({ points }) => points)
      .map((point) => JSON.stringify({ ...point, x: 0 }));
    for (const point of models[1]?.points ?? []) {
      expect(shared).toContain(JSON.stringify({ ...point, x: 0 }));
    }
    const [dense, blocks] = models.map(({ points }) => leastBytes(points[3] as PointPlan, 'bf16'));
    expect([dense, blocks].map((bytes) => ((bytes as number) / 2 ** 30).toFixed(1))).toEqual([
      '12.6',
      '3.1',
    ]);
  });

  it('names the points that a machine has no memory for', () => {
    const plan = kSeries.find(({ name }) => name === 'growth-bases-models-nf4') as SeriesPlan;
    const row = stepRow();
    const measured = plan.points.slice(0, 3).map(({ x }) => ({ x, row }));
    const absent = [{ x: 6.7e9, reason: 'the base takes 12.6 GiB, and 4.0 GiB are free' }];
    const series = growthSeries(plan, 'bf16', measured, absent);
    expect(series).toMatchObject({ baseFormat: 'nf4', absent });
    const [[name, xs]] = growthTable([series]).rows as [string[]];
    expect(name).toBe(
      'models nf4 parameters; 6700M: the base takes 12.6 GiB, and 4.0 GiB are free',
    );
    expect(xs).toBe('135M 362M 1100M');
  });

  it('fits the measured points', () => {
    const plan = kSeries[0] as (typeof kSeries)[number];
    const measured = [256, 512, 1024].map((x) => {
      const seconds = { median: x / 256, low: 1, high: 9, samples: 2 };
      return { x, row: stepRow({ seconds, peakBytes: (1 + x / 512) * 2 ** 30 }) };
    });
    const series = growthSeries(plan, 'bf16', measured);
    expect(series.points[1]).toEqual({ x: 512, seconds: 2, peakBytes: 2 ** 31 });
    expect(series.time.b).toBeCloseTo(1 / 256, 9);
    expect(series.memory).toMatchObject({ form: 'linear', formula: '1 + 0.00195 x' });
  });
});

describe('ratioRow', () => {
  it('divides rows of one run', () => {
    const rows = [
      stepRow({ tokensPerSecond: 800 }),
      stepRow({ name: 'lora-4x512', tokensPerSecond: 1200 }),
      stepRow({ name: 'balora-4x512-1-thread', tokensPerSecond: 440, gemmPeak: 1e12 }),
    ];
    expect(ratioRow('balora-over-lora', 'bf16', rows)).toMatchObject({ kind: 'ratio', value: 1.5 });
    expect(ratioRow('threads-1-2', 'bf16', rows)).toMatchObject({ value: 800 / 440 / 2 });
  });

  it('returns a reason where a row is missing', () => {
    const reason = 'this version has no --cache-teacher';
    const name = 'balora-4x512-cache-teacher';
    const rows = [stepRow(), { kind: 'unavailable', name, dtype: 'bf16', reason } as const];
    expect(ratioRow('cache-teacher-over-lora', 'bf16', rows)).toMatchObject({
      kind: 'unavailable',
      reason,
    });
    expect(ratioRow('balora-over-lora', 'bf16', rows)).toMatchObject({
      reason: 'lora-4x512 was not measured',
    });
  });
});

describe('features', () => {
  it('are looked up in the trainer itself', () => {
    for (const feature of ['cacheTeacher', 'minimalMemory'] as const) {
      const missing = missingFeature(feature);
      expect(missing === null || missing.startsWith('this version has no --')).toBe(true);
    }
  });
});

describe('runs beside torch', () => {
  it('have the rate of the median step where steps are equal, else that of the whole run', () => {
    const run = { version: '2', threads: 2, peakBytes: 4e9 };
    expect(torchRate({ ...run, seconds: [2, 4, 3], tokens: [300, 300, 300] })).toBe(100);
    expect(torchRate({ ...run, seconds: [2, 4], tokens: [300, 300 + 300] })).toBe(150);
  });

  it('give the median ratio of the pairs', () => {
    const pairs = [4, 6, 5].map((speed) => ({
      balora: stepRow({ tokensPerSecond: 100 * speed, peakBytes: 1e9 }),
      torch: { version: '2.13', threads: 2, peakBytes: 6e9, seconds: [2], tokens: [200] },
    }));
    const { speedRatio, memoryRatio, version } = pairsOf(pairs);
    expect(speedRatio).toEqual({ median: 5, low: 4, high: 6, samples: 3 });
    expect(memoryRatio.median).toBe(6);
    expect(version).toBe('2.13');
    const merged = mergeRuns(pairs.map(({ balora }) => balora));
    expect(merged.tokensPerSecond).toBe(500);
    expect(merged.seconds.samples).toBe(15);
  });
});

describe('micro-batches', () => {
  const kWorkload: Workload = {
    ...{ label: 'x', method: 'lora', rank: 4, batch: 2, length: 6 },
    ...{ accumulation: 1, data: 'random' },
  };
  let folder = '';
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'balora-'));
    await writeTinyCheckpoint(folder);
  });
  afterAll(() => rm(folder, { recursive: true }));

  async function all(workload: Workload, more: object = {}): Promise<Batch[]> {
    const data = await workloadData(workload, { vocabulary: 50, count: 3, ...more });
    const batches: Batch[] = [];
    for await (const batch of data.source.batches(0, 0)) batches.push(batch);
    await data.close();
    return batches;
  }

  it('are random ids, half of each sequence supervised', async () => {
    const batches = await all(kWorkload);
    expect(batches).toHaveLength(3);
    const { inputIds, cuSeqlens, targets } = batches[0] as Batch;
    expect([...cuSeqlens]).toEqual([0, 6, 12]);
    expect(Math.max(...inputIds)).toBeLessThan(50);
    expect([...targets.subarray(0, 6)].map((t) => t >= 0)).toEqual([
      ...[false, false, true],
      ...[true, true, false],
    ]);
    expect(await all(kWorkload)).toEqual(batches);
  });

  it("have GSM8K's lengths where there is no file, and say so", async () => {
    const gsm8k: Workload = { ...kWorkload, data: 'gsm8k' };
    const [first] = await all(gsm8k);
    expect([...(first as Batch).cuSeqlens]).toEqual([0, 68 + 62, 68 + 62 + 63 + 67]);
    const { notes } = await workloadData(gsm8k, { vocabulary: 50, count: 1 });
    expect(notes).toEqual([expect.stringContaining('synthetic')]);
  });

  it("are a file's rows in their order, by the model's tokenizer", async () => {
    const dataFile = join(folder, 'rows.jsonl');
    const rows = ['ab', 'cd', 'ef', 'gh'].map((text) => ({ question: text, answer: text }));
    await writeFile(dataFile, rows.map((row) => JSON.stringify(row)).join('\n'));
    const gsm8k: Workload = { ...kWorkload, data: 'gsm8k' };
    expect(await all(gsm8k, { dataFile, model: folder, count: 2 })).toHaveLength(2);
    expect(await all(gsm8k, { dataFile, model: folder, count: 1 })).toHaveLength(1);
    await expect(all(gsm8k, { dataFile })).rejects.toThrow(/--data needs --model/);
  });

  it('are written for torch unshifted, with -100 for unsupervised ids', async () => {
    const [batch] = await all(kWorkload);
    const rows = recipeRows(batch as Batch);
    expect(rows.map(({ ids }) => ids.length)).toEqual([6, 6]);
    const { ids, labels } = rows[1] as (typeof rows)[number];
    expect(labels).toEqual([-100, -100, -100, ids[3], ids[4], ids[5]]);
  });

  it("of an encoder have SST-2's lengths and two labels", async () => {
    const workload: Workload = { ...kWorkload, data: 'sst2', batch: 16, length: 128 };
    const { source, notes } = await encoderData(workload, {
      ...{ vocabulary: 50, count: 26, files: null },
    });
    const batches: LabelledBatch[] = [];
    for await (const batch of source.batches(0, 0)) batches.push(batch);
    expect([...(batches[0] as LabelledBatch).cuSeqlens].slice(0, 4)).toEqual([0, 20, 36, 81]);
    const tokens = batches.map(({ inputIds }) => inputIds.length);
    expect(tokens.slice(5, 25).reduce((sum, count) => sum + count, 0) / 20).toBe(374.3);
    expect(batches[25]?.cuSeqlens).toEqual(batches[0]?.cuSeqlens); // the lengths repeat
    const { positions, labels } = batches[1] as LabelledBatch;
    expect([...positions].slice(0, 3)).toEqual([0, 1, 2]);
    expect(positions[(batches[1] as LabelledBatch).cuSeqlens[1] as number]).toBe(0);
    expect(new Set(labels)).toEqual(new Set([0, 1]));
    expect(notes).toEqual([expect.stringContaining('synthetic')]);
  });

  it("of an encoder are a file's rows in their order", async () => {
    const data = join(folder, 'rows.tsv');
    await writeFile(data, ['1\tab', '0\tcd ef', '1\tgh'].join('\n'));
    const workload: Workload = { ...kWorkload, data: 'sst2', batch: 2, length: 128 };
    const files = { model: folder, data };
    const { source, notes } = await encoderData(workload, { vocabulary: 50, count: 4, files });
    const labels: number[][] = [];
    for await (const batch of source.batches(0, 0)) labels.push([...batch.labels]);
    expect(labels).toEqual([[1, 0], [1]]);
    expect(notes).toEqual([]);
  });

  it('are timed until they arrive, and not while they are used', async () => {
    const wait = async (ms: number): Promise<number> => {
      const start = performance.now();
      await new Promise((resolve) => setTimeout(resolve, ms));
      return (performance.now() - start) / 1000;
    };
    let [made, used] = [0, 0];
    const slow = {
      fingerprint: 'slow',
      batchCount: () => 1,
      async *batches(): AsyncGenerator<Batch> {
        made += await wait(20);
        yield (await all(kWorkload))[0] as Batch;
      },
    };
    const timed = new TimedSource(slow);
    const start = performance.now();
    for await (const _ of timed.batches(0, 0)) used += await wait(20);
    const whole = (performance.now() - start) / 1000;
    expect(timed.seconds).toBeGreaterThanOrEqual(made);
    expect(timed.seconds).toBeLessThanOrEqual(whole - used);
  });
});

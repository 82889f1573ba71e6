// The files that a run leaves in run/ of its output folder: evaluations, environment, export and result, each as docs/training.md
// describes it.
import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { namesIn } from '../../lib/io/files.ts';
import { getNumThreads } from '../../lib/runtime.ts';
import { fromJson, toJson } from '../../lib/train/json.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { TrainEvent, TrainResult } from '../../lib/train/types.ts';
import { tinyClassifier, tinyLabelled } from '../support/tiny_classifier.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let folder: string;
let output: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-record-'));
  output = join(folder, 'out');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const held = (count = 2) => tinySource(tinyBatches({ count }));

async function run(more: Partial<TrainerOptions> = {}) {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8 });
  const seen: string[] = [];
  const callbacks = [
    (event: TrainEvent) => {
      if (event.type === 'evaluating' || event.type === 'log') return;
      const step = event.type === 'step' ? event.record.step : 'step' in event ? event.step : '';
      seen.push(`${event.type}${step}`);
    },
    ...(more.callbacks ?? []),
  ];
  const trainer = new Trainer({
    ...{ tuned, output, data: tinySource(tinyBatches()), evalData: held() },
    ...{ maxSteps: 4, evalSteps: 2, learningRate: 0.02, lrSchedulerType: 'constant' },
    ...more,
    callbacks,
  });
  const result = await trainer.train();
  return { tuned, result, seen: seen.join(' ') };
}

const text = (name: string): string => readFileSync(join(output, 'run', name), 'utf8');
const lines = (name: string) =>
  text(name)
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);

/** A callback that stops a run after the event. */
function stopAfter(type: TrainEvent['type'], step: number): Partial<TrainerOptions> {
  const stop = new AbortController();
  const own = (event: TrainEvent) =>
    event.type === 'step' ? event.record.step : 'step' in event ? event.step : -1;
  const callbacks = [
    (event: TrainEvent) => void (event.type === type && own(event) === step && stop.abort()),
  ];
  return { signal: stop.signal, callbacks };
}

describe('a run writes', () => {
  it('each evaluation as a line, and the last one in full', async () => {
    const { result } = await run();
    const evaluations = lines('evaluations.jsonl');
    expect(evaluations.map(({ step }) => step)).toEqual([2, 4]);
    const { examples, ...numbers } = result.evaluation as Exclude<
      TrainResult['evaluation'],
      null
    > & { examples: unknown[] };
    expect(evaluations[1]).toEqual({
      ...{ step: 4, data: held().fingerprint },
      ...numbers,
      examples: examples.length,
    });
    expect(JSON.parse(text('last_evaluation.json'))).toEqual({
      ...{ step: 4, data: held().fingerprint },
      result: result.evaluation,
    });
  });

  it('the metrics of a classifier, without its predictions', async () => {
    const tuned = await AdapterModel.create(await tinyClassifier(), { r: 2 });
    const result = await new Trainer({
      ...{ tuned, output, maxSteps: 2, data: await tinyLabelled(6, { batchSize: 3 }) },
      evalData: await tinyLabelled(4, { batchSize: 2 }),
    }).train();
    const [line] = lines('evaluations.jsonl') as [Record<string, unknown>];
    expect(Object.keys(line)).toEqual([
      ...['step', 'data', 'problemType', 'loss', 'examples', 'tokens', 'metrics', 'seconds'],
    ]);
    const { metrics } = result.evaluation as unknown as { metrics: { accuracy: number } };
    expect(line.metrics).toMatchObject({ accuracy: metrics.accuracy });
  });

  it('its result as the library returns it, and what was exported', async () => {
    const { result } = await run({ metricForBestModel: 'loss' });
    expect(JSON.parse(text('result.json'))).toEqual(result);
    expect(JSON.parse(text('export.json'))).toEqual({
      ...{ step: result.best?.step, steps: 4, totalSteps: 4 },
    });
  });

  it('its result also where it was stopped, and none while it goes on', async () => {
    const stopped = await run({ ...stopAfter('step', 3) });
    expect(JSON.parse(text('result.json'))).toEqual(stopped.result);
    expect(stopped.result).toMatchObject({ reason: 'aborted', steps: 3 });
    let during: boolean | null = null;
    const look = (event: TrainEvent) => {
      if (event.type === 'step') during = existsSync(join(output, 'run/result.json'));
    };
    const { result } = await run({ resume: true, callbacks: [look] });
    expect(during).toBe(false);
    expect(JSON.parse(text('result.json'))).toEqual(result);
  });

  it('its environment at every start', async () => {
    await run({ ...stopAfter('step', 3), commandLine: ['train', '--max-steps', '4'] });
    await run({ resume: true });
    const [first, second] = lines('environment.jsonl') as [
      Record<string, unknown>,
      Record<string, unknown>,
    ];
    const { version } = JSON.parse(readFileSync('package.json', 'utf8')) as { version: string };
    expect(first).toEqual({
      time: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/),
      ...{ startStep: 0, totalSteps: 4, balora: version, node: process.version },
      platform: `${process.platform}-${process.arch}`,
      cpu: {
        model: expect.any(String),
        cores: expect.any(Number),
        instructions: expect.stringMatching(/^(amx|avx|plain)/),
      },
      ...{ threads: getNumThreads(), dtype: 'f32', device: 'cpu', deviceDescription: '' },
      commandLine: ['train', '--max-steps', '4'],
    });
    expect(second).toMatchObject({ startStep: 3, totalSteps: 4, commandLine: null });
    expect(text('config.json')).not.toContain('commandLine');
  });

  it('nothing that --overwrite would leave', async () => {
    await run({ metricForBestModel: 'loss' });
    const names = await namesIn(join(output, 'run'));
    expect(names.sort()).toEqual(
      [
        ...['best', 'checkpoints', 'config.json', 'environment.jsonl', 'evaluations.jsonl'],
        ...['export.json', 'last_evaluation.json', 'manifest.json', 'metrics.jsonl', 'result.json'],
      ].sort(),
    );
    const listed = JSON.parse(text('manifest.json')) as string[];
    expect(listed).toContain('adapter_config.json');
    expect(listed.filter((name) => name.startsWith('run/'))).toEqual([]);
    const failing = {
      ...tinySource(tinyBatches()),
      batches: () => {
        throw new Error('no data');
      },
    };
    await expect(run({ overwrite: true, data: failing })).rejects.toThrow('no data');
    expect(text('metrics.jsonl')).toBe('');
    expect(text('evaluations.jsonl')).toBe('');
    expect(lines('environment.jsonl')).toHaveLength(1);
    for (const name of ['best', 'export.json', 'result.json', 'last_evaluation.json']) {
      expect(existsSync(join(output, 'run', name)), name).toBe(false);
    }
  });
});

describe('an evaluation that was made before the run stopped', () => {
  it.each([
    [0, 'start step1 step2 evaluation2 checkpoint2 end'],
    [2, 'start step1 step2 checkpoint2 evaluation2 end'],
  ])('is not repeated, saveSteps %s', async (saveSteps, events) => {
    const stopped = await run({ saveSteps, ...stopAfter('evaluation', 2) });
    expect(stopped.seen).toBe(events);
    const rest = await run({ resume: true });
    expect(rest.seen).toBe('start step3 step4 checkpoint4 evaluation4 end');
    expect(lines('evaluations.jsonl').map(({ step }) => step)).toEqual([2, 4]);
  });

  it('is not repeated at the end, and is part of the result', async () => {
    const first = await run({ metricForBestModel: 'loss' });
    const again = await run({ metricForBestModel: 'loss', resume: true });
    expect(again.seen).toBe('start end');
    expect(again.result).toMatchObject({
      evaluation: first.result.evaluation,
      best: first.result.best,
    });
    expect(lines('evaluations.jsonl')).toHaveLength(2);
  });

  it('is repeated on other held-out data', async () => {
    await run();
    const again = await run({ evalData: held(3), resume: true });
    expect(again.seen).toBe('start evaluation4 end');
    expect(lines('evaluations.jsonl').map(({ step, data }) => [step, data])).toEqual([
      [2, held().fingerprint],
      [4, held().fingerprint],
      [4, held(3).fingerprint],
    ]);
  });

  it('of a later step than the checkpoint is dropped with its steps', async () => {
    await run({ saveSteps: 2, evalSteps: 1 });
    rmSync(join(output, 'run/checkpoints/step-4'), { recursive: true });
    const rest = await run({ evalSteps: 1, resume: true });
    expect(rest.seen).toBe('start step3 evaluation3 step4 checkpoint4 evaluation4 end');
    expect(lines('evaluations.jsonl').map(({ step }) => step)).toEqual([1, 2, 3, 4]);
  });

  it('is found in a log whose last line was cut off', async () => {
    await run({ ...stopAfter('evaluation', 2) });
    appendFileSync(join(output, 'run/evaluations.jsonl'), '{"step":3,"da');
    appendFileSync(join(output, 'run/environment.jsonl'), '{"time":"20');
    const rest = await run({ resume: true });
    expect(rest.seen).toMatch(/^start step3/);
    expect(lines('evaluations.jsonl').map(({ step }) => step)).toEqual([2, 4]);
    expect(lines('environment.jsonl').map(({ startStep }) => startStep)).toEqual([0, 2]);
  });

  it.each([
    '{',
    '5',
    '{"step":{"toString":1}}',
    '{"step":4,"data":"D","result":null}',
    '{"step":4,"data":"D","result":{"loss":{"toString":1}}}',
  ])('is repeated where its file was changed to %s', async (changed) => {
    await run();
    const { data } = JSON.parse(text('last_evaluation.json')) as { data: string };
    writeFileSync(
      join(output, 'run/last_evaluation.json'),
      changed.replace('"D"', JSON.stringify(data)),
    );
    const line = '{"step":{"toString":1,"valueOf":2}}\n';
    for (const name of ['evaluations', 'metrics']) {
      appendFileSync(join(output, `run/${name}.jsonl`), line);
    }
    expect((await run({ resume: true })).seen).toBe('start evaluation4 end');
    for (const name of ['evaluations.jsonl', 'metrics.jsonl'])
      expect(text(name)).not.toContain(line);
  });
});

it('numbers that are not finite survive in the record', () => {
  const value = {
    ...{ loss: Number.NaN, best: [Number.NEGATIVE_INFINITY, { f1: 1.5 }], kl: null, metric: 'f1' },
    label: 'NaN',
  };
  expect(fromJson(toJson(value), { texts: ['label'] })).toEqual(value);
  const deep = `${'['.repeat(5000)}${']'.repeat(5000)}`;
  expect(() => fromJson(`{"label":${deep}}`, { texts: ['label'] })).toThrow(SyntaxError);
});

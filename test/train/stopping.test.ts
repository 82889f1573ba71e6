// However a run ends early, its last complete step is in a checkpoint, from which it is resumed bit for bit.
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { Batch } from '../../lib/data/collate.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { namesIn } from '../../lib/io/files.ts';
import { crossEntropy, linear, mul } from '../../lib/ops/index.ts';
import { memoryStats, resetPeakMemory, setMemoryLimit } from '../../lib/runtime.ts';
import { tensor } from '../../lib/tensor.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type {
  BatchSource,
  LossContext,
  LossResult,
  StepRecord,
  TrainCallback,
  TrainEvent,
} from '../../lib/train/types.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { timeless } from '../support/run_numbers.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let folder: string;
let output: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-stopping-'));
  output = join(folder, 'out');
});
afterEach(() => {
  vi.restoreAllMocks();
  rmSync(folder, { recursive: true, force: true });
});

const kSteps = 6;
const adapted = () => AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8 });

/** A run of six steps of two micro-batches each, with evaluations after steps 2 and 4. */
async function trainer(more: Partial<TrainerOptions> = {}) {
  const tuned = await adapted();
  const options: TrainerOptions = {
    tuned,
    data: tinySource(tinyBatches()),
    evalData: tinySource(tinyBatches({ count: 2 })),
    evalSteps: 2,
    gradientAccumulationSteps: 2,
    learningRate: 0.02,
    maxSteps: kSteps,
    loggingSteps: 100,
    output,
    ...more,
  };
  return { tuned, trainer: new Trainer(options) };
}

const checkpoints = () => namesIn(join(output, 'run', 'checkpoints'));

/** The results of a run: its metrics and its adapter. */
const traces = (at: string) => ({
  metrics: readFileSync(join(at, 'run', 'metrics.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => timeless(JSON.parse(line) as StepRecord)),
  adapter: readFileSync(join(at, 'adapter_model.safetensors'), 'base64'),
});

/** Resumes the run, which must then have the results of an uninterrupted one. */
async function expectResumes(from: number, more: Partial<TrainerOptions> = {}): Promise<string[]> {
  const seen: string[] = [];
  const resumed = await trainer({ ...more, resume: true, callbacks: [noting(seen)] });
  expect((await resumed.trainer.train()).reason).toBe('completed');
  expect(seen.find((name) => name.startsWith('step'))).toBe(`step${from + 1}`);
  const whole = join(folder, 'whole');
  await (await trainer({ ...more, output: whole })).trainer.train();
  expect(traces(output)).toEqual(traces(whole));
  return seen;
}

const noting =
  (seen: string[]): TrainCallback =>
  (event) => {
    if (event.type === 'evaluating') return;
    const step = event.type === 'step' ? event.record.step : 'step' in event ? event.step : '';
    seen.push(`${event.type}${step}`);
  };

/** A callback that calls `what` at an event. */
const at =
  (type: TrainEvent['type'], step: number, what: () => void): TrainCallback =>
  (event) => {
    const own = event.type === 'step' ? event.record.step : 'step' in event ? event.step : 0;
    if (event.type === type && own === step) what();
  };

const fail = (message: string) => (): never => {
  throw new Error(message);
};

/** A source that calls `onRead` before the batch at a place of the run, counted from 0. */
const watched = (batches: readonly Batch[], place: number, onRead: () => void): BatchSource => ({
  ...tinySource(batches),
  *batches(epoch, start) {
    for (let i = start; i < batches.length; i++) {
      if (epoch * batches.length + i === place) onRead();
      yield batches[i] as Batch;
    }
  },
});

/** Cross-entropy times the factor that `also` returns; default 1. */
const ownLoss =
  (also: (context: LossContext) => number | undefined) =>
  (context: LossContext): LossResult => {
    const factor = also(context) ?? 1;
    const { hidden, headWeight, batch } = context;
    return { loss: mul(crossEntropy(linear(hidden, headWeight), tensor(batch.targets)), factor) };
  };

/** The error that a run ends with. */
async function failure(more: Partial<TrainerOptions>): Promise<Error & { code?: string }> {
  return (await trainer(more)).trainer.train().then(
    () => expect.unreachable('the run came to its end'),
    (error: Error) => error,
  );
}

const saved = (step: number) => `the last good checkpoint is ${checkpointPath(step)}, and resume`;
const checkpointPath = (step: number) => join(output, 'run', 'checkpoints', `step-${step}`);

describe('an error', () => {
  const plain = ownLoss(() => undefined);

  it.each([
    [
      'numbers that are not finite',
      3,
      { loss: ownLoss(({ step }) => (step === 3 ? Number.NaN : 1)) },
      { loss: plain },
      /^step 4: not finite \(taskLoss NaN, gradNorm NaN\); the parameters are those after step 3; lower the learning rate.*; the last/,
    ],
    [
      'a loss that throws in the second micro-batch of a step',
      3,
      {
        loss: ownLoss(({ step, batch }) =>
          step === 3 && batch.inputIds[0] === tinyBatches()[7]?.inputIds[0] ? fail('no loss')() : 1,
        ),
      },
      { loss: plain },
      /^no loss; the last/,
    ],
    [
      'data that cannot be read',
      3,
      { data: watched(tinyBatches(), 7, fail('row 7 is gone')) },
      {},
      /^row 7 is gone; the last/,
    ],
    ['a callback', 3, { callbacks: [at('step', 3, fail('mail'))] }, {}, /^mail; the last/],
    [
      'an evaluation on the way',
      4,
      {
        evalData: watched(
          tinyBatches({ count: 2 }),
          0,
          (
            (times) => () =>
              ++times === 2 && fail('no data')()
          )(0),
        ),
      },
      {},
      /^no data; the last/,
    ],
  ] as const)('%s leaves a checkpoint', async (_, step, broken, whole, message) => {
    const error = await failure(broken);
    expect(error.message).toMatch(message);
    expect(error.message).toContain(saved(step));
    expect(error.stack).toContain(error.message);
    expect(await checkpoints()).toEqual([`step-${step}`]);
    const seen = await expectResumes(step, whole);
    // An evaluation that was due and did not finish is repeated.
    expect(seen.slice(0, 2)).toEqual(['start', step === 4 ? 'evaluation4' : 'step4']);
  });

  it.each([0.05, 0.5, 0.95])('running out of memory (%s of a step)', async (share) => {
    const limited = async (event: TrainEvent) => {
      if (event.type !== 'step') return;
      await collectGarbage();
      const { liveBytes, peakBytes } = memoryStats();
      if (event.record.step === 2) resetPeakMemory();
      if (event.record.step === 3) {
        setMemoryLimit(Math.round(liveBytes + share * (peakBytes - liveBytes)));
      }
    };
    const error = await failure({ evalSteps: 0, callbacks: [limited] }).finally(() =>
      setMemoryLimit(0),
    );
    expect(error.message).toMatch(/out of memory: \d+ bytes wanted.*; the last good checkpoint/);
    expect(error.message).toContain(saved(3));
    await expectResumes(3, { evalSteps: 0 });
  });

  it('in the last evaluation or the export names the checkpoint of the last step', async () => {
    const evaluation = await failure({
      ...{ evalSteps: 0, evalData: watched(tinyBatches({ count: 2 }), 0, fail('no data')) },
    });
    expect(evaluation.message).toContain(`no data; ${saved(6)}`);
    const { tuned, trainer: exporting } = await trainer({ resume: true, evalSteps: 0 });
    vi.spyOn(tuned, 'savePretrained').mockRejectedValue(new ArgumentError('no room'));
    const error = (await exporting.train().catch((e: Error) => e)) as Error;
    expect(error).toBeInstanceOf(ArgumentError);
    expect(error.message).toContain(`no room; ${saved(6)}`);
  });

  it('that the output folder is gone is an error, and nothing says where the result is', async () => {
    const remove = (step: number) => (event: TrainEvent) => {
      const now = event.type === 'step' && event.record.step === step;
      if (now) rmSync(output, { recursive: true });
    };
    for (const step of [3, kSteps]) {
      const error = await failure({ saveSteps: 2, evalSteps: 0, callbacks: [remove(step)] });
      expect(error.message).toMatch(/out was removed or given to another process while/);
      expect(error.message).toMatch(/; there is no checkpoint$/);
      expect(existsSync(output)).toBe(false);
    }
  });

  it('before the end of the first step has nothing to save', async () => {
    const error = await failure({ loss: ownLoss(fail('no loss')) });
    expect(error.message).toBe('no loss');
    expect(await checkpoints()).toEqual([]);
    expect(existsSync(join(output, 'run', 'lock'))).toBe(false);
  });

  it('during an update saves no checkpoint of an incomplete step', async () => {
    const { tuned, trainer: broken } = await trainer({ saveSteps: 2 });
    const afterStep = tuned.afterStep.bind(tuned);
    let steps = 0;
    vi.spyOn(tuned, 'afterStep').mockImplementation(() =>
      ++steps === 4 ? fail('broken')() : afterStep(),
    );
    const error = (await broken.train().catch((e: Error) => e)) as Error;
    expect(error.message).toContain(
      `broken; step 4 was writing the parameters, which are lost; ${saved(2)}`,
    );
    expect(await checkpoints()).toEqual(['step-2']);
    await expectResumes(2, { saveSteps: 2 });
  });

  it('while the metrics of a step are written saves the step, and the resumed run writes them', async () => {
    const json = JSON.stringify;
    const line = vi.spyOn(JSON, 'stringify').mockImplementation((value, ...more) => {
      const isLine = (value as StepRecord | null)?.gradNorm !== undefined;
      if (isLine && (value as StepRecord).step === 3) fail('no line')();
      return json(value, ...(more as []));
    });
    const error = await failure({});
    line.mockRestore();
    expect(error.message).toContain(`no line; ${saved(3)}`);
    await expectResumes(3);
  });

  it('is still the one that is thrown where the checkpoint cannot be written either', async () => {
    const blocked = () => {
      rmSync(join(output, 'run', 'checkpoints'), { recursive: true });
      writeFileSync(join(output, 'run', 'checkpoints'), '');
      fail('first')();
    };
    const error = await failure({ callbacks: [at('step', 3, blocked)] });
    expect(error.message).toMatch(
      /^first; step 3 could not be saved \(.*checkpoints: cannot write: EEXIST.*; there is no/,
    );
    expect(error.cause).toMatchObject({ code: 'ERR_IO' });
    expect(existsSync(join(output, 'run', 'lock'))).toBe(false);
  });

  it('that is a DOMException keeps its class, and names the checkpoint, too', async () => {
    const error = await failure({
      callbacks: [
        at('step', 2, () => {
          throw new DOMException('too late', 'TimeoutError');
        }),
      ],
    });
    expect(error).toBeInstanceOf(DOMException);
    expect(error.name).toBe('TimeoutError');
    expect(error.message).toContain(`too late; ${saved(2)}`);
  });

  it('is unchanged where it is frozen or no Error, or the run has no output', async () => {
    const frozen = Object.freeze(new Error('frozen'));
    const fixed = Object.defineProperty(new Error(), 'message', { value: 'fixed' });
    for (const thrown of ['a text', frozen, fixed, null]) {
      const { trainer: failing } = await trainer({
        overwrite: true,
        callbacks: [
          at('step', 1, () => {
            throw thrown;
          }),
        ],
      });
      await expect(failing.train().catch((e: unknown) => e)).resolves.toBe(thrown);
      expect([frozen.message, fixed.message]).toEqual(['frozen', 'fixed']);
      expect(await checkpoints()).toEqual(['step-1']);
    }
    const { output: _, ...nowhere } = { output, callbacks: [at('step', 1, fail('mail'))] };
    const tuned = await adapted();
    const bare = new Trainer({ tuned, data: tinySource(tinyBatches()), maxSteps: 2, ...nowhere });
    await expect(bare.train()).rejects.toThrow(/^mail$/);
  });
});

describe('a consumer that leaves the loop over events', () => {
  it.each([
    ['start', 0],
    ['step', 1],
    ['step', 2],
    ['evaluating', 2],
    ['evaluation', 2],
    ['checkpoint', 3],
    ['log', 6],
    ['end', 6],
  ] as const)('at %s %s leaves a checkpoint of the last complete step', async (type, step) => {
    const seen: string[] = [];
    const { trainer: left } = await trainer({ saveSteps: 3, callbacks: [noting(seen)] });
    let written: number | null = null;
    for await (const event of left.run()) {
      const own = event.type === 'step' || event.type === 'log' ? event.record.step : null;
      const of = own ?? ('step' in event ? event.step : event.type === 'end' ? 6 : 0);
      if (event.type !== type || of !== step) continue;
      if (existsSync(checkpointPath(step))) written = statSync(checkpointPath(step)).ino;
      break;
    }
    const kept = (await checkpoints()).map((name) => Number(name.slice(5)));
    expect(Math.max(0, ...kept)).toBe(step);
    expect(seen.filter((name) => name === `checkpoint${step}`)).toHaveLength(step > 0 ? 1 : 0);
    // A checkpoint is not written twice.
    if (written !== null) expect(statSync(checkpointPath(step)).ino).toBe(written);
    expect(existsSync(join(output, 'run', 'lock'))).toBe(false);
    if (step > 0 && step < kSteps) {
      const resumed = await expectResumes(step, { saveSteps: 3 });
      const owed = step === 2 && type !== 'evaluation';
      expect(resumed[1]).toBe(owed ? 'evaluation2' : `step${step + 1}`);
    }
  });

  it('by an error of its own leaves a checkpoint, too', async () => {
    const { trainer: left } = await trainer();
    const consume = async () => {
      for await (const event of left.run()) if (event.type === 'step') fail('mine')();
    };
    await expect(consume()).rejects.toThrow(/^mine$/);
    expect(await checkpoints()).toEqual(['step-1']);
  });

  it('gets the error where nothing could be saved', async () => {
    const { trainer: left } = await trainer();
    const consume = async () => {
      for await (const event of left.run()) {
        if (event.type !== 'step') continue;
        rmSync(join(output, 'run', 'checkpoints'), { recursive: true });
        writeFileSync(join(output, 'run', 'checkpoints'), '');
        break;
      }
    };
    await expect(consume()).rejects.toThrow(/checkpoints: cannot write: EEXIST/);
    expect(existsSync(join(output, 'run', 'lock'))).toBe(false);
  });
});

describe('an abort', () => {
  it.each([
    ['before the run', 0, (stop: AbortController) => void stop.abort()],
    ['at the start', 0, (stop) => ({ callbacks: [at('start', 0, () => stop.abort())] })],
    ['while data is read', 3, (stop) => ({ data: watched(tinyBatches(), 7, () => stop.abort()) })],
    [
      'while data is read, with the reason thrown by the source',
      3,
      (stop) => ({
        data: watched(tinyBatches(), 7, () => {
          stop.abort();
          stop.signal.throwIfAborted();
        }),
      }),
    ],
    [
      'in a loss that throws the reason',
      2,
      (stop) => ({
        loss: async (context) => {
          if (context.step === 2) {
            stop.abort(new Error('enough'));
            await sleep(10_000, null, { signal: stop.signal });
          }
          return ownLoss(() => undefined)(context);
        },
      }),
    ],
    [
      'in a callback that throws the reason',
      3,
      (stop) => ({
        callbacks: [
          at('step', 3, () => {
            stop.abort();
            stop.signal.throwIfAborted();
          }),
        ],
      }),
    ],
    [
      'in an evaluation, by a callback that rethrows it',
      2,
      (stop) => ({
        callbacks: [
          at('evaluating', 2, () => {
            stop.abort();
            stop.signal.throwIfAborted();
          }),
        ],
      }),
    ],
    [
      'while data is read, which wraps the error of what it waits for',
      3,
      (stop) => ({
        data: {
          ...tinySource(tinyBatches()),
          async *batches(epoch: number, start: number) {
            for (const [i, batch] of tinyBatches().slice(start).entries()) {
              if (epoch === 0 && start + i === 7) {
                setTimeout(() => stop.abort(), 1);
                await sleep(10_000, null, { signal: stop.signal }).catch((cause) => {
                  throw new Error('row 7 cannot be read', { cause });
                });
              }
              yield batch;
            }
          },
        },
      }),
    ],
    [
      'before an evaluation, at the event of a checkpoint',
      4,
      (stop) => ({ saveSteps: 4, callbacks: [at('checkpoint', 4, () => stop.abort())] }),
    ],
  ] satisfies [string, number, (stop: AbortController) => Partial<TrainerOptions> | undefined][])(
    '%s ends the run as aborted',
    async (_, step, options) => {
      const stop = new AbortController();
      const more: Partial<TrainerOptions> = options(stop) ?? {};
      const seen: string[] = [];
      const callbacks = [...(more.callbacks ?? []), noting(seen)];
      const { trainer: stopped } = await trainer({ ...more, callbacks, signal: stop.signal });
      const result = await stopped.train();
      expect(result).toMatchObject({ reason: 'aborted', steps: step, output: null });
      expect(result.checkpoint).toBe(step === 0 ? null : checkpointPath(step));
      expect(seen.at(-1)).toBe('end');
      expect(await checkpoints()).toEqual(step === 0 ? [] : [`step-${step}`]);
      const { saveSteps, loss } = more;
      const rest = {
        ...(saveSteps && { saveSteps }),
        ...(loss && { loss: ownLoss(() => undefined) }),
      };
      await expectResumes(step, rest);
    },
  );

  it('while the run is being opened leaves no output', async () => {
    const stop = new AbortController();
    const source = tinySource(tinyBatches());
    const data: BatchSource = {
      ...source,
      batchCount: () => {
        stop.abort();
        throw stop.signal.reason;
      },
    };
    const events: string[] = [];
    const { trainer: stopped } = await trainer({ data, signal: stop.signal });
    for await (const { type } of stopped.run()) events.push(type);
    expect(events).toEqual(['end']);
    expect(existsSync(output)).toBe(false);
  });

  it('does not hide another error', async () => {
    const stop = new AbortController();
    const callbacks = [
      at('step', 2, () => {
        stop.abort();
        fail('mail')();
      }),
    ];
    const error = await failure({ signal: stop.signal, callbacks });
    expect(error.message).toContain(`mail; ${saved(2)}`);
  });
});

describe('saveMinutes', () => {
  /** Runs steps of four minutes each; by default ten minutes may pass without a checkpoint. */
  async function slow(more: Partial<TrainerOptions>): Promise<string> {
    let minutes = 0;
    vi.spyOn(performance, 'now').mockImplementation(() => minutes * 60_000);
    const seen: string[] = [];
    const slowly = (event: TrainEvent) => {
      if (event.type === 'step') minutes += 4;
    };
    const callbacks = [slowly, noting(seen)];
    await (await trainer({ maxSteps: 8, evalSteps: 3, ...more, callbacks })).trainer.train();
    return seen.filter((name) => /^(step|checkpoint|evaluation)/.test(name)).join(' ');
  }

  it('saves after ten minutes by default, before an evaluation that is due', async () => {
    expect(await slow({})).toBe(
      'step1 step2 step3 checkpoint3 evaluation3 step4 step5 step6 checkpoint6 evaluation6 ' +
        'step7 step8 checkpoint8 evaluation8',
    );
  });

  it.each([
    [{ saveMinutes: 0 }, '8'],
    [{ saveMinutes: 8.5, saveSteps: 4 }, '3 4 7 8'],
    [{ saveMinutes: 0.001 }, '1 2 3 4 5 6 7 8'],
  ])('%j', async (options, steps) => {
    const seen = await slow({ ...options, evalSteps: 0 });
    const saves = seen.split(' ').filter((name) => name.startsWith('checkpoint'));
    expect(saves.map((name) => name.slice(10)).join(' ')).toBe(steps);
  });

  it('is no part of the identity of a run', async () => {
    await slow({ saveMinutes: 1, maxSteps: kSteps, evalSteps: 2, saveTotalLimit: 6 });
    for (const step of [5, 6]) rmSync(checkpointPath(step), { recursive: true });
    vi.restoreAllMocks();
    await expectResumes(4, { saveMinutes: 0 });
  });

  it('is checked', async () => {
    await expect(trainer({ saveMinutes: -1 })).rejects.toThrow(
      'saveMinutes must be a number >= 0, got -1',
    );
  });
});

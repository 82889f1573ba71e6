// What must hold over a long run: memory stays flat, the event loop stays free, two workers do not disturb each other.
import { expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';

const kLimitMs = 300_000; // on a busy machine
const kHangMs = 60_000; // the engine's threads are the nicest of all
const kSteps = 10_000;
const kMaxDelayMs = 20;
const kMegabyte = 1 << 20;

interface Sample {
  step: number;
  heapUsed: number;
  liveBytes: number;
  liveTensors: number;
  /** Beside heap and engine; null off Linux. */
  ownBytes: number | null;
}

/** Bytes a step that nobody would notice over a run: 3 MB in 10,000 steps. */
const kUnnoticed = 300;

async function report(program: string, args: string[], nodeArgs: string[] = []): Promise<unknown> {
  const options = { args, nodeArgs, limitMs: kLimitMs, hangMs: kHangMs };
  const result = await runProgram(`test/lifetime/programs/${program}`, options);
  expect(result).toMatchObject({ code: 0, signal: null, stopped: null, stderr: '' });
  return JSON.parse(result.stdout);
}

/** The sample at half of the steps, and the last. As many steps come before: the C library takes thousands to reach its size. */
async function longRun(steps: number, ...more: string[]): Promise<[settled: Sample, last: Sample]> {
  // Freed pages of V8 go back at once, not when a thread of its own gets to it.
  const nodeArgs = ['--expose-gc', '--max-semi-space-size=1', '--single-threaded-gc'];
  const samples = (await report(
    'flat_memory.mjs',
    [`${2 * steps}`, ...more],
    nodeArgs,
  )) as Sample[];
  const [settled, last] = [samples[4] as Sample, samples[9] as Sample];
  expect([settled.step, last.step]).toEqual([steps, 2 * steps]);
  return [settled, last];
}

it(`${kSteps} steps at flat memory`, { timeout: kLimitMs }, async () => {
  const [settled, last] = await longRun(kSteps);
  expect(last.liveBytes).toBe(settled.liveBytes);
  expect(last.liveTensors).toBe(settled.liveTensors);
  expect(last.heapUsed - settled.heapUsed).toBeLessThan(kMegabyte);
  if (last.ownBytes !== null) {
    expect(last.ownBytes - (settled.ownBytes ?? 0)).toBeLessThan(kUnnoticed * kSteps);
  }
});

it('a leak of 1 KiB a step would be found, in the engine and beside it', {
  timeout: kLimitMs,
}, async () => {
  const kFew = 1500;
  const [settled, last] = await longRun(kFew, '1024');
  expect(last.liveBytes - settled.liveBytes).toBe(1024 * kFew);
  if (last.ownBytes !== null) {
    expect(last.ownBytes - (settled.ownBytes ?? 0)).toBeGreaterThan(2 * kUnnoticed * kFew);
  }
});

it('nothing is left behind by scopes and backward, to the byte', async () => {
  const nothing = { bytes: 0, tensors: 0 };
  expect(await report('exact_memory.mjs', [])).toEqual({
    scope: nothing,
    'scope with one result': { bytes: 1024, tensors: 1 },
    'a throw in a scope': nothing,
    backward: nothing,
  });
});

interface LoopReport {
  idle: Record<string, number>;
  busy: Record<string, number>;
  steps: number;
  consistency: number;
  /** Processor time over the busy period in ticks, and niceness, of every thread; empty off Linux. */
  threads: { main: boolean; nice: number; ticks: number }[];
}

it('the event loop stays free while the trainer runs', { timeout: 240_000 }, async ({ skip }) => {
  const { idle, busy, steps, consistency, threads } = (await report('event_loop.mjs', [
    ...['5000', '30000'],
  ])) as LoopReport;
  console.log(
    `event loop delay, ms: idle p99 ${idle.p99?.toFixed(2)}, max ${idle.max?.toFixed(2)}; ` +
      `training p99 ${busy.p99?.toFixed(2)}, max ${busy.max?.toFixed(2)} over ${steps} steps`,
  );
  if (process.platform === 'linux') expectNiced(threads);
  skip((idle.p99 ?? 0) > kMaxDelayMs / 2, 'the machine is too busy: it delays an idle loop too');
  expect(steps).toBeGreaterThan(10);
  expect(consistency).toBeGreaterThan(0); // the teacher took part, and the student has left it
  expect(busy.p99).toBeLessThan(kMaxDelayMs);
});

/** The thread that did the work is nicer than the event loop's, and so is every other that did a good part of it. */
function expectNiced(threads: LoopReport['threads']): void {
  const kNicer = 10;
  const base = threads.find(({ main }) => main)?.nice ?? Number.NaN;
  const workers = threads.filter(({ main }) => !main);
  const most = Math.max(...workers.map(({ ticks }) => ticks));
  expect(most).toBeGreaterThan(10); // a tenth of a second
  for (const { nice, ticks } of workers) {
    if (ticks > most / 2) expect(nice).toBe(Math.min(19, base + kNicer));
  }
}

it('two workers and the main thread train side by side', { timeout: 120_000 }, async () => {
  expect(await report('two_workers.mjs', [])).toEqual({ codes: [0, 0], equal: true });
});

// Long runs: memory stays constant, the event loop stays free, two workers do not disturb each other.
import { expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';

const kHangMs = 60_000; // long, since the engine's threads have the lowest priority
const kSteps = 10_000;
const kMaxDelayMs = 20;
const kMegabyte = 1 << 20;

interface Sample {
  step: number;
  heapUsed: number;
  liveBytes: number;
  liveTensors: number;
  /** Bytes that malloc has given out, without V8's; null where the C library does not count them. */
  ownBytes: number | null;
}

/** Growth in bytes per step that is tolerated: 1 MB in 10,000 steps. */
const kUnnoticed = 100;

async function report(program: string, args: string[], nodeArgs: string[] = []): Promise<unknown> {
  const options = { args, nodeArgs, hangMs: kHangMs };
  const result = await runProgram(`test/lifetime/programs/${program}`, options);
  expect(result).toMatchObject({ code: 0, signal: null, stopped: null, stderr: '' });
  return JSON.parse(result.stdout);
}

/**
 * Samples after `steps` and after twice as many steps. The first half is a warm-up: the C library needs
 * thousands to reach its size.
 */
async function longRun(steps: number, ...more: string[]): Promise<[settled: Sample, last: Sample]> {
  const nodeArgs = ['--expose-gc'];
  const samples = (await report(
    'flat_memory.mjs',
    [`${2 * steps}`, ...more],
    nodeArgs,
  )) as Sample[];
  const [settled, last] = [samples[4] as Sample, samples[9] as Sample];
  expect([settled.step, last.step]).toEqual([steps, 2 * steps]);
  return [settled, last];
}

it(`${kSteps} steps in constant memory`, async () => {
  const [settled, last] = await longRun(kSteps);
  expect(last.liveBytes).toBe(settled.liveBytes);
  expect(last.liveTensors).toBe(settled.liveTensors);
  expect(last.heapUsed - settled.heapUsed).toBeLessThan(kMegabyte);
  if (last.ownBytes !== null) {
    expect(last.ownBytes - (settled.ownBytes ?? 0)).toBeLessThan(kUnnoticed * kSteps);
  }
});

it('a leak of 1 KiB per step is found, in the engine and outside of it', async () => {
  const kFew = 1500;
  const [settled, last] = await longRun(kFew, '1024');
  expect(last.liveBytes - settled.liveBytes).toBe(1024 * kFew);
  if (last.ownBytes !== null) {
    expect(last.ownBytes - (settled.ownBytes ?? 0)).toBeGreaterThan(2 * kUnnoticed * kFew);
  }
});

it('scopes and backward free every byte', async () => {
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
  /** Processor time during the training in ticks, and niceness, of every thread; empty on systems other than Linux. */
  threads: { main: boolean; nice: number; ticks: number }[];
}

it('the event loop stays free while the trainer runs', async ({ skip }) => {
  const { idle, busy, steps, consistency, threads } = (await report('event_loop.mjs', [
    ...['2000', '10000'],
  ])) as LoopReport;
  console.log(
    `event loop delay, ms: idle p99 ${idle.p99?.toFixed(2)}, max ${idle.max?.toFixed(2)}; ` +
      `training p99 ${busy.p99?.toFixed(2)}, max ${busy.max?.toFixed(2)} over ${steps} steps`,
  );
  if (process.platform === 'linux') expectNiced(threads);
  skip((idle.p99 ?? 0) > kMaxDelayMs / 2, 'the machine is too busy: it delays an idle loop too');
  expect(steps).toBeGreaterThan(3);
  expect(consistency).toBeGreaterThan(0); // the teacher ran, and the student differs from it
  expect(busy.p99).toBeLessThan(kMaxDelayMs);
});

/** Checks that the threads that did most of the work have a lower priority than the event loop's. */
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

it('two workers and the main thread train side by side', async () => {
  expect(await report('two_workers.mjs', [])).toEqual({ codes: [0, 0], equal: true });
});

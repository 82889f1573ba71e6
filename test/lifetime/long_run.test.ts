// What must hold over a long run: memory stays flat, the event loop stays free, two workers do not disturb each other.
import { expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';

const kSteps = 10_000;
const kMaxDelayMs = 20;
const kMegabyte = 1 << 20;

interface Sample {
  step: number;
  rss: number;
  heapUsed: number;
  liveBytes: number;
  liveTensors: number;
}

async function report(program: string, args: string[], nodeArgs: string[] = []): Promise<unknown> {
  const result = await runProgram(`test/lifetime/programs/${program}`, { args, nodeArgs });
  expect(result).toMatchObject({ code: 0, signal: null, stopped: null, stderr: '' });
  return JSON.parse(result.stdout);
}

it(`${kSteps} steps at flat memory`, { timeout: 150_000 }, async () => {
  // As many steps before: the allocator of the C library takes thousands to reach its size.
  // V8's young generation may double at any time, the sooner the busier the machine: here it cannot.
  const nodeArgs = ['--expose-gc', '--max-semi-space-size=1'];
  const samples = (await report('flat_memory.mjs', [`${2 * kSteps}`], nodeArgs)) as Sample[];
  const settled = samples.find((sample) => sample.step === kSteps) as Sample;
  const last = samples.at(-1) as Sample;
  expect(last.step).toBe(2 * kSteps);
  expect(last.liveBytes).toBe(settled.liveBytes);
  expect(last.liveTensors).toBe(settled.liveTensors);
  expect(last.heapUsed - settled.heapUsed).toBeLessThan(kMegabyte);
  // A loss of 300 bytes a step would show.
  expect(last.rss - settled.rss).toBeLessThan(3 * kMegabyte);
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

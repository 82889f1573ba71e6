/**
 * Times ops by the engine's own clock, without the cost of JavaScript and of the queue. On a GPU that is the device's clock; a
 * sample is enqueued while the device is busy with filler work, so that its kernels run back to back and no launch latency lies
 * between them.
 */
import { sharesProcessMemory } from '../../lib/device.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { fill_, zeros } from '../../lib/ops/index.ts';
import { opTimes, resetOpTimes, setProfiling, synchronize, withPhase } from '../../lib/runtime.ts';
import { noGrad, scope, type Tensor, unscoped } from '../../lib/tensor.ts';
import { sum } from './statistics.ts';

const kPhase = 'measured';

interface TimingOptions {
  /** Enqueues work that the timed part needs and that is not timed (the forward pass before a backward). */
  prepare?: () => void;
  /** Names of the ops that are timed. Default: all ops of the body. */
  ops?: readonly string[] | undefined;
  /** Smallest number of samples. Default 5. */
  least?: number;
  /** Largest number of samples. Default 40. */
  most?: number;
  /** Seconds after which no more samples than `least` are taken. Default 0.15. */
  seconds?: number;
}

/** Shortest sample in seconds: shorter calls run several times per sample, on a GPU at most kMostQueued times. */
const kLeastSample = 2e-3;
const kMostQueued = 64;

/** Seconds that the filler work, fills of a block, keeps a GPU busy while a sample is enqueued. */
const kBusy = 1.5e-3;
const kLeastFill = 1 << 20;
const kMostFill = 1 << 29;
const kMostFills = 10;

/** Filler work that runs while the next sample is enqueued. */
class Filler {
  private fills = kMostFills;

  private constructor(private readonly block: Tensor) {}

  /** Creates as much filler work as the device needs. Profiling must be on. */
  static async make(): Promise<Filler> {
    for (let bytes = kLeastFill; ; bytes *= 2) {
      const filler = new Filler(unscoped(() => zeros([bytes / 4])));
      await filler.seconds(); // loads the kernel
      const wanted = kBusy / Math.max(await filler.seconds(), 1e-9);
      filler.fills = Math.max(1, Math.min(kMostFills, Math.ceil(wanted)));
      if (wanted <= kMostFills || bytes >= kMostFill) return filler;
      filler.dispose();
    }
  }

  enqueue(fills = this.fills): void {
    for (let i = 0; i < fills; i++) noGrad(() => fill_(this.block, 0));
  }

  dispose(): void {
    this.block.dispose();
  }

  private async seconds(): Promise<number> {
    await synchronize();
    resetOpTimes();
    this.enqueue(1);
    await synchronize();
    return sum(opTimes().map(({ seconds }) => seconds));
  }
}

/**
 * Seconds of one call of `body`, repetition by repetition; one call before is thrown away (it
 * packs weights and makes primitives).
 */
export async function timeOps(
  body: () => void,
  { prepare = () => {}, ops, least = 5, most = 40, seconds = 0.15 }: TimingOptions = {},
): Promise<number[]> {
  let filler: Filler | null = null;
  const sample = async (calls: number): Promise<number> => {
    resetOpTimes();
    filler?.enqueue();
    for (let i = 0; i < calls; i++) {
      scope(() => {
        prepare();
        withPhase(kPhase, body);
      });
    }
    await synchronize();
    const times = opTimes().filter(
      ({ phase, op }) => phase === kPhase && (ops === undefined || ops.includes(op)),
    );
    if (times.length === 0) throw new ArgumentError(`timing: no ${ops ?? 'op'} ran`);
    return sum(times.map((time) => time.seconds)) / calls;
  };
  const profiling = setProfiling(true);
  try {
    if (!sharesProcessMemory()) filler = await Filler.make();
    const mostCalls = filler === null ? Number.POSITIVE_INFINITY : kMostQueued;
    return await repeat(sample, { least, most, seconds, mostCalls });
  } finally {
    (filler as Filler | null)?.dispose();
    setProfiling(profiling);
  }
}

type Repeat = Required<Pick<TimingOptions, 'least' | 'most' | 'seconds'>> & { mostCalls: number };

async function repeat(
  sample: (calls: number) => Promise<number>,
  { least, most, seconds, mostCalls }: Repeat,
): Promise<number[]> {
  await sample(1);
  const wanted = Math.ceil(kLeastSample / Math.max(await sample(1), 1e-7));
  const calls = Math.min(Math.max(1, wanted), mostCalls);
  const samples: number[] = [];
  let spent = 0;
  while (samples.length < least || (samples.length < most && spent < seconds)) {
    const one = await sample(calls);
    samples.push(one);
    spent += one * calls;
  }
  return samples;
}

/**
 * Timing ops by the engine's own clock: what JavaScript and the queue cost is not in it. On a GPU that is the device's clock,
 * and a sample is enqueued while the device is busy with something else, so that its kernels stand in the queue one behind
 * the other and no launch is waited for between them.
 */
import { sharesProcessMemory } from '../../lib/device.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { fill_, zeros } from '../../lib/ops/index.ts';
import { opTimes, resetOpTimes, setProfiling, synchronize, withPhase } from '../../lib/runtime.ts';
import { noGrad, scope, type Tensor, unscoped } from '../../lib/tensor.ts';
import { sum } from './statistics.ts';

const kPhase = 'measured';

interface TimingOptions {
  /** Enqueues what the timed part needs and may be counted out (a forward pass before its backward). */
  prepare?: () => void;
  /** Ops that are counted; left out: all of the body's. */
  ops?: readonly string[] | undefined;
  /** Stop after this many repetitions or seconds, whichever is later reached first; defaults 5 to 40, 0.15 s. */
  least?: number;
  most?: number;
  seconds?: number;
}

/** Shorter calls are run several times a sample; on a GPU no more often than its queue holds them. */
const kLeastSample = 2e-3;
const kMostQueued = 64;

/** What keeps a GPU busy while a sample is enqueued: fills of a block, for so long. */
const kBusy = 1.5e-3;
const kLeastFill = 1 << 20;
const kMostFill = 1 << 29;
const kMostFills = 10;

/** Work that the next sample queues up behind. */
class Ahead {
  private fills = kMostFills;

  private constructor(private readonly block: Tensor) {}

  /** As much as the device needs; profiling is on. */
  static async make(): Promise<Ahead> {
    for (let bytes = kLeastFill; ; bytes *= 2) {
      const ahead = new Ahead(unscoped(() => zeros([bytes / 4])));
      await ahead.seconds(); // loads the kernel
      const wanted = kBusy / Math.max(await ahead.seconds(), 1e-9);
      ahead.fills = Math.max(1, Math.min(kMostFills, Math.ceil(wanted)));
      if (wanted <= kMostFills || bytes >= kMostFill) return ahead;
      ahead.dispose();
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
 * Seconds of one call of `body`, repetition by repetition; one call before is thrown away (it packs weights and makes
 * primitives).
 */
export async function timeOps(
  body: () => void,
  { prepare = () => {}, ops, least = 5, most = 40, seconds = 0.15 }: TimingOptions = {},
): Promise<number[]> {
  let ahead: Ahead | null = null;
  const sample = async (calls: number): Promise<number> => {
    resetOpTimes();
    ahead?.enqueue();
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
    if (!sharesProcessMemory()) ahead = await Ahead.make();
    const mostCalls = ahead === null ? Number.POSITIVE_INFINITY : kMostQueued;
    return await repeat(sample, { least, most, seconds, mostCalls });
  } finally {
    (ahead as Ahead | null)?.dispose();
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

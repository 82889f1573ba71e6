/** Timing ops by the engine's own clock: what JavaScript and the queue cost is not in it. */
import { ArgumentError } from '../errors.ts';
import { opTimes, resetOpTimes, setProfiling, synchronize, withPhase } from '../runtime.ts';
import { scope } from '../tensor.ts';
import { sum } from './statistics.ts';

const kPhase = 'measured';

export interface TimingOptions {
  /** Enqueues what the timed part needs and may be counted out (a forward pass before its backward). */
  prepare?: () => void;
  /** Ops that are counted; left out: all of the body's. */
  ops?: readonly string[] | undefined;
  /** Stop after this many repetitions or seconds, whichever is later reached first; defaults 5 to 40, 0.15 s. */
  least?: number;
  most?: number;
  seconds?: number;
}

/** Shorter calls are run several times a sample. */
const kLeastSample = 2e-3;

/**
 * Seconds of one call of `body`, repetition by repetition; one call before is thrown away (it packs weights and makes
 * primitives).
 */
export async function timeOps(
  body: () => void,
  { prepare = () => {}, ops, least = 5, most = 40, seconds = 0.15 }: TimingOptions = {},
): Promise<number[]> {
  const sample = async (calls: number): Promise<number> => {
    resetOpTimes();
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
  const profiling = setProfiling(true); // on a GPU an op's time is its kernels', not the launch's
  try {
    return await repeat(sample, { least, most, seconds });
  } finally {
    setProfiling(profiling);
  }
}

async function repeat(
  sample: (calls: number) => Promise<number>,
  { least, most, seconds }: Required<Pick<TimingOptions, 'least' | 'most' | 'seconds'>>,
): Promise<number[]> {
  await sample(1);
  const calls = Math.max(1, Math.ceil(kLeastSample / Math.max(await sample(1), 1e-7)));
  const samples: number[] = [];
  let spent = 0;
  while (samples.length < least || (samples.length < most && spent < seconds)) {
    const one = await sample(calls);
    samples.push(one);
    spent += one * calls;
  }
  return samples;
}

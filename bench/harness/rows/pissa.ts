/** PiSSA's initialisation in a process of its own: seconds for all linear layers of a model, and the captured energy. */
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import type { InitLoraWeights } from '../../../lib/adapters/config.ts';
import { getDefaultDevice } from '../../../lib/device.ts';
import { mul, sum as sumOf } from '../../../lib/ops/index.ts';
import { synchronize } from '../../../lib/runtime.ts';
import { noGrad, scope, type Tensor } from '../../../lib/tensor.ts';
import { spread, sum } from '../statistics.ts';
import { openSubject, type SubjectOptions } from '../subject.ts';
import type { PissaRow } from '../types.ts';
import { peakBytesOf } from './step.ts';

export interface PissaRowInput extends SubjectOptions {
  readonly name: string;
  readonly rank: number;
  readonly init: InitLoraWeights;
  readonly repetitions: number;
}

/** Seconds above which an initialisation is not repeated. */
const kLongest = 60;

export async function pissaRow(input: PissaRowInput): Promise<PissaRow> {
  const { rank, init, repetitions, dtype } = input;
  const { model, notes } = await openSubject(input);
  const seconds: number[] = [];
  let [captured, modules] = [0, 0];
  for (let i = 0; i < repetitions; i++) {
    await synchronize();
    const begun = performance.now();
    const tuned = await AdapterModel.create(model, {
      r: rank,
      loraAlpha: rank,
      initLoraWeights: init,
    });
    await synchronize();
    seconds.push((performance.now() - begun) / 1000);
    modules = tuned.modules.length;
    const last = i === repetitions - 1 || sum(seconds) > kLongest;
    if (last) captured = await capturedEnergy(tuned);
    tuned.dispose();
    if (last) break;
  }
  return {
    kind: 'pissa',
    name: input.name,
    dtype,
    seconds: spread(seconds),
    modules,
    rank,
    capturedEnergy: captured,
    peakBytes: peakBytesOf(getDefaultDevice()),
    notes,
  };
}

/**
 * Captured energy: the squared norm of s B A over that of W, summed over all modules. The rows of A are orthogonal with squared
 * norm sigma / s, so that a module's s B A has the squared norm sum (s |a_i|^2)^2.
 */
async function capturedEnergy({ modules }: AdapterModel): Promise<number> {
  let [part, whole] = [0, 0];
  for (const { pair, linear, scale } of modules) {
    const [rows, norm] = scope(() =>
      noGrad(() => {
        const square = (x: Tensor): Tensor => mul(x, x);
        return [sumOf(square(pair.a), { axis: 1 }), sumOf(square(linear.weight.to('f64')))];
      }),
    ) as [Tensor, Tensor];
    for (const value of await rows.data()) part += (scale * Number(value)) ** 2;
    whole += await norm.item();
    rows.dispose();
    norm.dispose();
  }
  return part / whole;
}

// The schedules of the regularizers against the golden tables, to the last bits of double precision.
import { describe, expect, it } from 'vitest';
import { BaLoraLoss } from '../../lib/losses/balora.ts';
import {
  adaptiveConsistencyWeight,
  consistencyWeightAt,
  type RegularizerSchedule,
  regularizerFactorAt,
} from '../../lib/losses/term.ts';
import { fixturePath, goldenTensor, readJson } from '../support/fixtures.ts';
import { goldenArrays } from '../support/golden.ts';
import { identity } from '../support/golden_losses.ts';

interface Table {
  S: number;
  steps: number[];
  [column: string]: unknown;
}
interface Adaptive {
  logits: string;
  l1: number;
  l1_min: number | null;
  l1_max: number | null;
  T: number;
  mean_entropy: number;
  value: number;
}

const golden = readJson(fixturePath('losses/schedules.json')) as {
  l1: number;
  tables: Table[];
  adaptive: Adaptive[];
};
const arrays = goldenArrays(fixturePath('losses/schedules.safetensors'));

function weightOf(column: string, step: number, totalSteps: number): number {
  const at = { step, totalSteps };
  if (column === 'l1_constant') return consistencyWeightAt('constant', golden.l1, at);
  if (column === 'l1_cosine') return consistencyWeightAt('cosine', golden.l1, at);
  const phase = /^two_phase_([\d.]+)_([\d.]+?)(_integer_steps)?$/.exec(column);
  if (phase) {
    return regularizerFactorAt('two_phase', at, {
      warmupRatio: Number(phase[1]),
      rampRatio: Number(phase[2]),
      integerSteps: phase[3] !== undefined,
    });
  }
  const warmup = /^(linear_warmup|quadratic_warmup)_w(\d+)$/.exec(column);
  if (!warmup) throw new Error(`no schedule ${column}`);
  const warmupSteps = Number(warmup[2]);
  return regularizerFactorAt(warmup[1] as RegularizerSchedule, at, { warmupSteps });
}

describe('schedules', () => {
  it.each(golden.tables)('S = $S', (table) => {
    const columns = Object.keys(table).filter(
      (key) => Array.isArray(table[key]) && key !== 'steps',
    );
    expect(columns.length).toBeGreaterThan(10);
    for (const column of columns) {
      table.steps.forEach((step, i) => {
        const expected = (table[column] as number[])[i] as number;
        const found = weightOf(column, step, table.S);
        expect(Math.abs(found - expected), `${column} at ${step}`).toBeLessThanOrEqual(1e-13);
      });
    }
  });

  it.each(golden.adaptive)('adaptive: $logits, T $T', (c) => {
    const logits = arrays.get(c.logits);
    if (!logits) throw new Error(`no array ${c.logits}`);
    const [rows, vocabulary] = logits.shape as [number, number];
    const weight = adaptiveConsistencyWeight(c.mean_entropy, vocabulary, {
      weight: c.l1,
      ...(c.l1_min === null ? {} : { min: c.l1_min }),
      ...(c.l1_max === null ? {} : { max: c.l1_max }),
    });
    expect(Math.abs(weight - c.value)).toBeLessThanOrEqual(1e-15);
    // The entropy is that of the hidden states, which are the logits of an identity head.
    const loss = new BaLoraLoss(
      { weight: identity(vocabulary, 'f64') },
      { temperature: c.T, positions: 'non_padding' },
    );
    const entropies = loss.teacherEntropyRows(goldenTensor(logits, 'f64'), {
      targets: new Int32Array(rows).fill(-100),
      cuSeqlens: Int32Array.of(0, rows),
    });
    const values = entropies?.dataSync() as Float64Array;
    let mean = 0;
    for (let n = 0; n < rows; n++) mean += (values[3 * n + 2] as number) / rows;
    expect(Math.abs(mean - c.mean_entropy)).toBeLessThanOrEqual(1e-12);
  });

  it('a step outside a run is refused', () => {
    expect(() => regularizerFactorAt('constant', { step: -1, totalSteps: 3 })).toThrow(/got -1 of/);
    const nan = { step: Number.NaN, totalSteps: 3 };
    expect(() => consistencyWeightAt('cosine', 1, nan)).toThrow(/NaN/);
  });
});

import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { resolveRegularizers } from '../../lib/train/methods.ts';
import type { RegularizerOptions } from '../../lib/train/types.ts';
import { consistencyFactor, regularizerFactor } from '../../lib/train/weights.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

interface Golden {
  l1: number;
  tables: (Record<string, number[]> & { S: number; steps: number[] })[];
  adaptive: {
    l1: number;
    l1_min: number | null;
    l1_max: number | null;
    c: number;
    value: number;
  }[];
}

describeShared('schedules of the regularizers', () => {
  const golden = JSON.parse(
    readFileSync(sharedPath('golden/losses/schedules.json'), 'utf8'),
  ) as unknown as Golden;
  const tables = golden.tables.filter(({ S }) => S > 0);
  const names = Object.keys(tables[0] as object).filter((name) => !['S', 'steps'].includes(name));

  const optionsOf = (name: string): RegularizerOptions | null => {
    const phase = /^two_phase_([\d.]+)_([\d.]+)$/.exec(name);
    if (phase) {
      return {
        regularizerSchedule: 'two_phase',
        regularizerWarmupRatio: Number(phase[1]),
        regularizerRampRatio: Number(phase[2]),
      };
    }
    const warmup = /^(linear_warmup|quadratic_warmup)_w(\d+)$/.exec(name);
    if (warmup) {
      return {
        regularizerSchedule: warmup[1] as 'linear_warmup',
        regularizerWarmupSteps: Number(warmup[2]),
      };
    }
    return null;
  };

  // The integer forms are the published code's rounding, kept as a reference for parity only.
  it.each(names.filter((name) => !name.endsWith('_integer_steps')))('%s', (name) => {
    for (const table of tables) {
      const options = optionsOf(name);
      const at = (step: number): number => {
        if (options) return regularizerFactor(resolveRegularizers(options), step, table.S);
        const schedule = name === 'l1_cosine' ? 'cosine' : 'constant';
        expect(['l1_cosine', 'l1_constant', 'constant']).toContain(name);
        return golden.l1 * consistencyFactor(schedule, { step, total: table.S });
      };
      table.steps.forEach((step, i) => {
        const expected = (table[name] as number[])[i] as number;
        expect(Math.abs(at(step) - expected), `S=${table.S} s=${step}`).toBeLessThan(1e-12);
      });
    }
  });

  it('adaptive, between a tenth and the whole', () => {
    for (const { l1, l1_min, l1_max, c, value } of golden.adaptive) {
      if (l1_min !== null || l1_max !== null) continue;
      const found = l1 * consistencyFactor('adaptive', { step: 0, total: 1, certainty: c });
      expect(Math.abs(found - value)).toBeLessThan(1e-12);
    }
  });
});

it('needs a run of at least one step', () => {
  expect(() => regularizerFactor(resolveRegularizers({}), 0, 0)).toThrow(/at least 1 step/);
});

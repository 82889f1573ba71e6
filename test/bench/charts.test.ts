// The parts of the documentation that are generated from reports: growth charts, and the table of targets.
import { describe, expect, it } from 'vitest';
import { growthSeries, kSeries } from '../../bench/harness/growth.ts';
import type { GrowthSeries, Row } from '../../bench/harness/types.ts';
import { stepRow } from '../support/bench_reports.ts';

const load = (path: string) => import(new URL(`../../${path}`, import.meta.url).href);
const { growthCharts } = (await load('bench/charts.mjs')) as {
  growthCharts: (growth: readonly GrowthSeries[]) => Record<string, string>;
};
interface Target {
  what: string;
  must: string;
  reached: (rows: readonly Row[]) => { text: string; met: boolean } | null;
}
const { targetsOf } = (await load('bench/targets.mjs')) as {
  targetsOf: (machine: { features: readonly string[] }) => Target[];
};

const microRow = (name: string, median: number, ceilingShare: number): Row => ({
  ...{ kind: 'micro', name, dtype: 'bf16', shapes: '', work: 1, unit: 'flop', rate: 1 / median },
  ...{ seconds: { median, low: median, high: median, samples: 1 }, ceilingShare },
});

function measured(name: string): GrowthSeries {
  const plan = kSeries.find((series) => series.name === name) as (typeof kSeries)[number];
  const points = plan.points.map(({ x }) => {
    const seconds = { median: 0.1 + x / 1000, low: 1, high: 9, samples: 2 };
    return { x, row: stepRow({ seconds, peakBytes: (1 + x / 512) * 2 ** 30 }) };
  });
  return growthSeries(plan, 'bf16', points);
}

describe('growthCharts', () => {
  it('draws one chart per axis, with every shape and its fits', () => {
    const growth = [
      measured('growth-smollm2-135m-length'),
      measured('growth-smollm2-360m-length'),
      measured('growth-smollm2-135m-rank'),
    ];
    const charts = growthCharts(growth);
    expect(Object.keys(charts)).toEqual(['growth-length.svg', 'growth-rank.svg']);
    const svg = charts['growth-length.svg'] as string;
    expect(svg).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
    for (const text of ['smollm2-135m', 'smollm2-360m', '0.1 + 0.001 x', '1 + 0.00195 x']) {
      expect(svg).toContain(text);
    }
    expect(growthCharts(growth)).toEqual(charts); // generated files must not differ from run to run
  });
});

it('growthCharts draws the bases in blocks beside those in values, over lengths and over shapes', () => {
  const charts = growthCharts([
    measured('growth-bases-smollm2-135m-dense'),
    measured('growth-bases-smollm2-135m-nf4'),
    measured('growth-bases-models-nf4'),
  ]);
  expect(Object.keys(charts)).toEqual(['growth-length.svg', 'growth-parameters.svg']);
  expect(charts['growth-length.svg']).toContain('smollm2-135m, nf4');
  expect(charts['growth-parameters.svg']).toContain('models, nf4');
});

describe('targetsOf', () => {
  it('has higher targets for a processor with AMX', () => {
    const musts = (features: string[]): string[] => targetsOf({ features }).map(({ must }) => must);
    expect(musts(['amx_bf16']).slice(0, 2)).toEqual(['>= 6x', '>= 25%']);
    expect(musts(['avx512_bf16']).slice(0, 2)).toEqual(['>= 4x', '>= 50%']);
    expect(musts(['amx_bf16']).slice(2, 4)).toEqual(['>= 60%', '>= 60%']);
    expect(musts(['avx512_bf16']).slice(2, 5)).toEqual(['>= 85%', '>= 80%', '>= 80%']);
    expect(musts(['amx_bf16']).slice(4)).toEqual(musts([]).slice(5));
  });

  it('shows the measured figures, and null where nothing was measured', () => {
    const targets = targetsOf({ features: [] });
    expect(targets.every(({ reached }) => reached([]) === null)).toBe(true);
    const spread = { median: 200, low: 190, high: 210, samples: 3 };
    const torch = {
      ...{ version: '2.13', tokensPerSecond: spread, peakBytes: 6 * 2 ** 30 },
      speedRatio: { ...spread, median: 5.12 },
      memoryRatio: { ...spread, median: 6 },
    };
    const found = targets.map(({ reached }) => reached([stepRow({ torch })]));
    expect(found).toContainEqual({ text: '5.12x (1024 against 200 tokens/s)', met: true });
    expect(found).toContainEqual({ text: '1/6.00 (1.00 of 6.00 GiB)', met: true });
    expect(found).toContainEqual({ text: '50%', met: true });
    const amx = targetsOf({ features: ['amx_bf16'] });
    expect(amx[0]?.reached([stepRow({ torch })])?.met).toBe(false);
    const step = { median: 2, low: 2, high: 2, samples: 3 };
    const bounded = stepRow({ torch, seconds: step, ceilingSeconds: 1.6 });
    const text = '5.12x (1024 against 200 tokens/s; ceiling 6.40x)';
    expect(targets[0]?.reached([bounded])).toEqual({ text, met: true });
    expect(targets[2]?.reached([bounded])).toEqual({ text: '80%', met: false });
  });

  it('counts the forward of the teacher in the share of attention', () => {
    const attention = targetsOf({ features: ['avx512_bf16'] })[3];
    const rows = [
      microRow('micro-attention', 2, 0.9),
      microRow('micro-attention-backward', 4, 0.8),
    ];
    const text = '85.0% (forward 90%, backward 80%)';
    expect(attention?.reached(rows)).toEqual({ text, met: true });
    expect(attention?.reached(rows.slice(0, 1))).toBeNull();
  });

  it('compares int8 with bf16 by speed, and leaves out a ceiling of other products', () => {
    const targets = targetsOf({ features: ['avx512_bf16'] });
    const find = (part: string): Target | undefined =>
      targets.find(({ what }) => what.includes(part));
    const ratio: Row = {
      kind: 'ratio',
      name: 'int8-over-bf16',
      dtype: 'bf16',
      value: 0.8,
      meaning: '',
    };
    expect(find('teacher and dX in int8')?.reached([ratio])).toEqual({ text: '1.25x', met: true });
    const spread = { median: 200, low: 190, high: 210, samples: 3 };
    const torch = {
      ...{ version: '2.13', tokensPerSecond: spread, peakBytes: 6 * 2 ** 30 },
      speedRatio: { ...spread, median: 5.12 },
      memoryRatio: { ...spread, median: 6 },
    };
    const kept = stepRow({ name: 'balora-4x512-cache-teacher-int8', torch, ceilingSeconds: 1.6 });
    const text = '5.12x (1024 against 200 tokens/s)';
    expect(find('all products in int8')?.reached([kept])).toEqual({ text, met: false });
  });
});

import { expect, it } from 'vitest';

interface Bar {
  label: string;
  mean: number;
  deviation: number;
  n: number;
}
const load = (path: string) => import(new URL(`../../${path}`, import.meta.url).href);
const { barChart } = (await load('studies/bar_chart.mjs')) as {
  barChart: (chart: { title: string; axis: string; bars: readonly Bar[] }) => string;
};

const draw = (...bars: Bar[]): string => barChart({ title: 'A study', axis: 'accuracy', bars });
const of = (mean: number, deviation = 0, n = 1): Bar => ({ label: 'a < b', mean, deviation, n });

it('labels each bar with its mean, deviation and number of seeds', () => {
  const svg = draw(of(0.5, 0.125, 3), of(0.25));
  expect(svg).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
  for (const text of ['A study: accuracy', 'a &lt; b', '0.500 ± 0.125, 3 seeds', '0.250, 1 seed']) {
    expect(svg).toContain(`>${text}<`);
  }
  expect(draw(of(0.5, 0.125, 3), of(0.25))).toBe(svg); // generated files must not differ from run to run
});

it('has a whisker for each bar with several seeds', () => {
  const whiskers = (svg: string): number => svg.split('stroke="#222"').length - 1;
  expect(whiskers(draw(of(0.5, 0.125, 3), of(0.25)))).toBe(1);
  expect(whiskers(draw(of(0.5, 0.1, 2), of(0.25, 0.1, 2)))).toBe(2);
});

it('has an axis from 0, or from below where a bar is negative', () => {
  expect(draw(of(0.5))).not.toContain('>-0.25<');
  expect(draw(of(-0.1, 0.05, 2))).toContain('>-0.25<');
});

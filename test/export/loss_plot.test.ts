/** The picture of a run's losses: where its points lie, and that the text is SVG. */
import { expect, it } from 'vitest';
import { lossPlot } from '../../lib/export/loss_plot.ts';

/** The points of each curve, and the labels of the axes with their places. */
function partsOf(svg: string) {
  const points = Array.from(svg.matchAll(/points="([^"]*)"/g), ([, text = '']) =>
    text.split(' ').map((point) => point.split(',').map(Number)),
  );
  const labels = Array.from(
    svg.matchAll(/<text x="([\d.]+)" y="([\d.]+)"[^>]*>(-?[\d.e+-]+)<\/text>/g),
    ([, x, y, value]) => ({ x: Number(x), y: Number(y), value: Number(value) }),
  );
  return { points, labels };
}

it('has each point where the labels of the axes say', () => {
  const curves = [
    {
      name: 'training loss',
      points: [
        [1, 2.5],
        [10, 1.25],
        [20, 0.75],
      ] as const,
    },
    { name: 'held-out loss', points: [[20, 1]] as const },
  ];
  const svg = lossPlot(curves);
  const { points, labels } = partsOf(svg);
  // Labels of steps are below the frame, those of losses to the left of it.
  const ofSteps = labels.filter(({ y }) => y > 320);
  const ofLosses = labels.filter(({ y }) => y <= 320);
  const valueAt = (ticks: typeof labels, key: 'x' | 'y', place: number): number => {
    const [first, last] = [ticks[0], ticks.at(-1)] as [(typeof labels)[0], (typeof labels)[0]];
    const share = (place - first[key]) / (last[key] - first[key]);
    return first.value + share * (last.value - first.value);
  };
  for (const [i, { points: given }] of curves.entries()) {
    expect(points[i]).toHaveLength(given.length);
    for (const [j, [step, loss]] of given.entries()) {
      const [x, y] = (points[i] as number[][])[j] as [number, number];
      expect(valueAt(ofSteps, 'x', x)).toBeCloseTo(step, 1);
      expect(valueAt(ofLosses, 'y', y)).toBeCloseTo(loss, 2);
    }
  }
  expect(svg).toContain('>training loss</text>');
  expect(svg).toContain('>held-out loss</text>');
});

it.each([
  [
    'equal losses',
    [
      [1, 2],
      [2, 2],
      [3, 2],
    ],
  ],
  [
    'losses of zero',
    [
      [1, 0],
      [2, 0],
      [3, 0],
    ],
  ],
  [
    'losses below zero',
    [
      [1, -0.5],
      [2, -1],
      [3, -30],
    ],
  ],
  [
    'a large loss',
    [
      [100_000, 1e9],
      [200_000, 2],
      [300_000, 1],
    ],
  ],
  ['one step', [[7, 1.5]]],
] as [string, [number, number][]][])('has %s within its frame', (_, points) => {
  const svg = lossPlot([{ name: 'loss', points }]);
  const [found = []] = partsOf(svg).points;
  expect(found).toHaveLength(points.length);
  for (const [x, y] of found as [number, number][]) {
    expect(x).toBeGreaterThanOrEqual(64);
    expect(x).toBeLessThanOrEqual(704);
    expect(y).toBeGreaterThanOrEqual(36);
    expect(y).toBeLessThanOrEqual(316);
  }
  expect(svg).not.toMatch(/NaN|Infinity/);
  expect(svg.match(/<svg /g)).toHaveLength(1);
});

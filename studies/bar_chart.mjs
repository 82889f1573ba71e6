// Bar charts of measures between 0 and 1 with their standard deviations over seeds.
import { kFont, svgOf } from '../bench/svg.mjs';
import { shown } from './statistics.mjs';

const kBar = 26;
const kGrid = { left: 210, right: 150, top: 46 };

/**
 * Draws horizontal bars on an axis from 0 to 1, or from below 0 where a value is negative, with whiskers of one deviation for
 * bars of several seeds.
 * @param bars {label, mean, deviation, n}
 * @returns an SVG document
 */
export function barChart({ title, axis, bars }) {
  const least = Math.min(0, ...bars.map(({ mean, deviation }) => mean - deviation));
  const inside = bars.length * (kBar + 8);
  const option = {
    title: { text: `${title}: ${axis}`, left: 16, top: 10, textStyle: { ...kFont, fontSize: 15 } },
    grid: { ...kGrid, height: inside },
    xAxis: {
      ...{ type: 'value', min: Math.floor(4 * least) / 4, max: 1, interval: 0.25 },
      axisLabel: kFont,
    },
    yAxis: {
      ...{ type: 'category', inverse: true, data: bars.map(({ label }) => label) },
      ...{ axisLine: { show: false }, axisTick: { show: false }, axisLabel: kFont },
    },
    series: [
      { type: 'bar', barWidth: kBar, color: '#4878a8', data: bars.map(({ mean }) => mean) },
      {
        type: 'custom',
        data: bars.map(({ mean }, i) => [mean, i]),
        renderItem: ({ dataIndex }, { coord }) => whisker(bars[dataIndex], dataIndex, coord),
      },
    ],
  };
  return svgOf(option, { width: 690, height: kGrid.top + inside + 34 });
}

/** The whisker of bar i around its mean, and mean and deviation as text after it. */
function whisker(bar, i, coord) {
  const [x1, y] = coord([bar.mean - bar.deviation, i]);
  const [x2] = coord([Math.max(0, bar.mean + bar.deviation), i]);
  const text = `${shown(bar)}, ${bar.n} ${bar.n > 1 ? 'seeds' : 'seed'}`;
  const label = { text, x: x2 + 8, y, verticalAlign: 'middle', ...kFont, fill: '#222' };
  const children = [{ type: 'text', style: label }];
  if (bar.n > 1) {
    const [end] = coord([bar.mean + bar.deviation, i]);
    const shape = { x1, x2: end, y1: y, y2: y };
    children.push({ type: 'line', shape, style: { stroke: '#222', lineWidth: 2 } });
  }
  return { type: 'group', children };
}

// Charts of the growth series in a benchmark report, as SVG: one file per axis, with time and memory side by side and the measured
// points with their fits. `node bench/charts.mjs REPORT.json FOLDER` writes them, once `npm run bench` or the tests have built the
// harness. echarts draws them without a browser.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { valueAt } from '../build/harness/fit.js';
import { kFont, svgOf } from './svg.mjs';

const kColours = ['#1f6f8b', '#c8553d', '#588157', '#6d597a'];
const kWidth = 960;
const kHeight = 420;
const kGiB = 2 ** 30;
const kAxisNames = {
  length: 'tokens of the sequence',
  batch: 'sequences of 256 tokens',
  rank: 'rank',
  vocabulary: 'vocabulary',
  parameters: 'parameters',
};

/** The two panels: the time of a step, and the peak memory of the process. */
const kPanels = [
  { title: 'seconds a step', fit: 'time', value: (point) => point.seconds, left: '7%' },
  {
    title: 'peak memory, GiB',
    fit: 'memory',
    value: (point) => point.peakBytes / kGiB,
    left: '56%',
  },
];

/** Points on the fit between the smallest and the largest size, spaced evenly by ratio because the axes are logarithmic. */
function fitPoints(fit, xs) {
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  return Array.from({ length: 33 }, (_, i) => {
    const x = low * (high / low) ** (i / 32);
    return [x, valueAt(fit, x)];
  });
}

/** A series in words: its shape, and the blocks of its base. */
function labelOf({ shape, baseFormat }) {
  return baseFormat === undefined ? shape : `${shape}, ${baseFormat}`;
}

/** Both forms of a base have the colour of their shape. */
function linesOf(series, { all, panel, at }) {
  const shapes = [...new Set(all.map(({ shape }) => shape))];
  const color = kColours[shapes.indexOf(series.shape) % kColours.length];
  const xs = series.points.map(({ x }) => x);
  const fit = series[panel.fit];
  const base = { xAxisIndex: at, yAxisIndex: at, color, silent: true };
  return [
    {
      ...base,
      name: labelOf(series),
      type: 'scatter',
      symbolSize: 9,
      ...(series.baseFormat !== undefined && { symbol: 'triangle' }),
      data: series.points.map((point) => [point.x, panel.value(point)]),
    },
    {
      ...base,
      type: 'line',
      showSymbol: false,
      lineStyle: { color, width: 1.5, type: 'dashed' },
      data: fitPoints(fit, xs),
      endLabel: {
        show: true,
        formatter: fit.formula,
        color,
        ...kFont,
        fontSize: 11,
        align: 'right',
        // The two forms of a base take about the same time.
        offset: [-4, series.baseFormat === undefined ? -14 : 16],
      },
    },
  ];
}

/** @param all growth series of one axis; @returns an SVG document */
function growthChart(all) {
  const [{ axis, fixed, dtype }] = all;
  const xs = all.flatMap(({ points }) => points.map(({ x }) => x));
  const grid = { top: 84, bottom: 52, width: '38%' };
  const axisStyle = { nameLocation: 'middle', nameTextStyle: kFont, axisLabel: kFont };
  const option = {
    title: {
      text: `BA-LoRA step against ${axis} (${fixed}, ${dtype})`,
      ...{ left: 'center', top: 4 },
      textStyle: { ...kFont, fontSize: 15 },
    },
    legend: { top: 32, itemGap: 48, data: all.map(labelOf), textStyle: kFont },
    grid: kPanels.map(({ left }) => ({ ...grid, left })),
    xAxis: kPanels.map((_, gridIndex) => ({
      ...axisStyle,
      ...{ gridIndex, type: 'log', logBase: 2, name: kAxisNames[axis], nameGap: 30 },
      ...(axis === 'parameters' && {
        axisLabel: { ...kFont, formatter: (x) => `${Math.round(x / 1e6)}M` },
      }),
      ...{ min: Math.min(...xs), max: Math.max(...xs), minorSplitLine: { show: false } },
    })),
    yAxis: kPanels.map(({ title }, gridIndex) => ({
      ...{
        gridIndex,
        type: 'log',
        logBase: 2,
        name: title,
        nameTextStyle: kFont,
        axisLabel: kFont,
      },
    })),
    series: kPanels.flatMap((panel, at) =>
      all.flatMap((series) => linesOf(series, { all, panel, at })),
    ),
  };
  return svgOf(option, { width: kWidth, height: kHeight });
}

/** The charts of all axes that were measured: file name -> SVG. */
export function growthCharts(growth) {
  const byAxis = new Map();
  for (const series of growth) {
    byAxis.set(series.axis, [...(byAxis.get(series.axis) ?? []), series]);
  }
  return Object.fromEntries(
    [...byAxis].map(([axis, all]) => [`growth-${axis}.svg`, growthChart(all)]),
  );
}

/** Writes the charts of a report; returns their paths. */
function writeCharts(report, folder) {
  mkdirSync(folder, { recursive: true });
  return Object.entries(growthCharts(report.growth)).map(([name, svg]) => {
    const path = join(folder, name);
    writeFileSync(path, svg);
    return path;
  });
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [path, folder] = process.argv.slice(2);
  if (!path || !folder) throw new Error('usage: node bench/charts.mjs REPORT.json FOLDER');
  for (const written of writeCharts(JSON.parse(readFileSync(path, 'utf8')), folder)) {
    console.log(written);
  }
}

// The study's tables (Markdown) and plots (SVG): mean and standard deviation over seeds of every arm under every condition.
//
//   node studies/inheritance/report.mjs [--output output/inheritance]
//
// Reads output/runs.jsonl, and writes output/report.md and one SVG per condition, with all runs. Those of one arm under one
// condition must have the same settings, since others cannot be averaged.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { barChart } from '../bar_chart.mjs';
import { line, readLines, shown, statistics } from '../statistics.mjs';
import { CONDITIONS } from './conditions.mjs';

const { values: options } = parseArgs({
  options: { output: { type: 'string', default: join('output', 'inheritance') } },
});
const runs = readLines(join(options.output, 'runs.jsonl'));

const kArms = {
  lora: 'LoRA',
  pissa: 'PiSSA',
  balora: 'BA-LoRA',
  full: 'full',
  'no-consistency': 'BA-LoRA without consistency',
  'no-diversity': 'BA-LoRA without diversity',
  'no-svd': 'BA-LoRA without SVD',
};
const kMeasures = {
  accuracy: ({ accuracy }) => accuracy,
  'recall of class 0': ({ recallPerClass }) => recallPerClass[0],
  'recall of class 1': ({ recallPerClass }) => recallPerClass[1],
  Matthews: ({ matthews }) => matthews,
  'held-out loss': ({ evalLoss }) => evalLoss,
};

function requireOneSetting(here) {
  const settings = new Map();
  for (const run of here) {
    const known = settings.get(run.arm) ?? JSON.stringify(run.settings);
    if (known !== JSON.stringify(run.settings)) {
      throw new Error(`${run.condition} ${run.arm}: runs of different settings in one log`);
    }
    settings.set(run.arm, known);
  }
}

const parts = [];
for (const [name, { title, metric }] of Object.entries(CONDITIONS)) {
  const here = runs.filter(({ condition }) => condition === name);
  if (here.length === 0) continue;
  const of = (arm, measure) =>
    statistics(here.filter((run) => run.arm === arm).map(kMeasures[measure]));
  requireOneSetting(here);
  const arms = Object.keys(kArms).filter((arm) => here.some((run) => run.arm === arm));
  const measures = Object.keys(kMeasures);
  parts.push(
    `## ${title}`,
    '',
    line(['', 'seeds', ...measures]),
    line(['---', '---', ...measures.map(() => '---')]),
    ...arms.map((arm) =>
      line([
        kArms[arm],
        of(arm, 'accuracy').n,
        ...measures.map((measure) => shown(of(arm, measure))),
      ]),
    ),
    '',
  );
  const bars = arms.map((arm) => ({ label: kArms[arm], ...of(arm, metric) }));
  writeFileSync(join(options.output, `${name}.svg`), barChart({ title, axis: metric, bars }));
}
const text = parts.join('\n');
writeFileSync(join(options.output, 'report.md'), text);
console.log(text);

// The study's tables (Markdown) and plots (SVG): mean and standard deviation over seeds of every arm under every condition.
//
//   node examples/inheritance/report.mjs [--output output/inheritance]
//
// Reads output/runs.jsonl; writes output/report.md and one SVG a condition. Nothing is left out.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { CONDITIONS } from './conditions.mjs';
import { barChart } from './svg.mjs';

const { values: options } = parseArgs({
  options: { output: { type: 'string', default: join('output', 'inheritance') } },
});
const runs = readFileSync(join(options.output, 'runs.jsonl'), 'utf8')
  .split('\n')
  .filter(Boolean)
  .map(JSON.parse);

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

/** Mean and sample standard deviation (null for one value); null for none. */
function statistics(values) {
  if (values.length === 0) return null;
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  const squares = values.reduce((sum, v) => sum + (v - mean) ** 2, 0);
  return {
    mean,
    deviation: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : null,
    n: values.length,
  };
}
const shown = (s) => {
  if (s === null) return '';
  const mean = s.mean.toFixed(3);
  return s.deviation === null ? mean : `${mean} ± ${s.deviation.toFixed(3)}`;
};
const line = (cells) => `| ${cells.join(' | ')} |`;

const parts = [];
for (const [name, { title, metric }] of Object.entries(CONDITIONS)) {
  const here = runs.filter(({ condition }) => condition === name);
  if (here.length === 0) continue;
  const of = (arm, measure) =>
    statistics(here.filter((run) => run.arm === arm).map(kMeasures[measure]));
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

// Writes the tables of docs/performance.md and README.md, and the growth charts, from the reports in bench/results/MACHINE/: the
// block `bench:MACHINE/NAME` of a page holds the table NAME of that machine. For each row the latest measurement counts, one beside
// torch before one alone. A ratio that no report has is computed from the report of the first of its rows, if that has the second, too,
// else from the rows that count. `--check` only compares, and fails when a page is stale.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { targetsOf } from '../bench/targets.mjs';
import { ensureBench } from './support/bench_build.mjs';
import { inRoot, main, SetupError } from './support/shell.mjs';

const kResults = inRoot('bench', 'results');
const kImages = inRoot('docs', 'images');
const kPages = ['docs/performance.md', 'README.md'];

/** The latest measurement of each row and series of a machine, and its reports. */
async function collect(machine) {
  const folder = `${kResults}/${machine}`;
  const names = readdirSync(folder).filter((name) => name.endsWith('.json'));
  const reports = names
    .map((name) => JSON.parse(readFileSync(`${folder}/${name}`, 'utf8')))
    .sort((a, b) => (a.date < b.date ? -1 : 1));
  const rows = new Map();
  const growth = new Map();
  for (const report of reports) {
    for (const row of report.rows) {
      const paired = rows.get(keyOf(row))?.torch !== undefined;
      const alone = row.torch === undefined;
      if (row.kind === 'unavailable' || (paired && alone)) continue;
      rows.set(keyOf(row), row);
    }
    for (const row of report.rows) {
      if (row.kind === 'unavailable' && !rows.has(keyOf(row))) rows.set(keyOf(row), row);
    }
    for (const series of report.growth) {
      const { shape, axis, baseFormat = 'dense' } = series;
      growth.set(`${shape} ${axis} ${baseFormat}`, series);
    }
  }
  const { kRatioNeeds } = await import('../build/harness/workloads.js');
  const { ratioRow } = await import('../build/harness/ratios.js');
  for (const [name, [first]] of Object.entries(kRatioNeeds)) {
    const key = `${name} bf16`;
    if (rows.get(key)?.kind === 'ratio') continue;
    rows.delete(key);
    const own = reports.find((report) => report.rows.includes(rows.get(`${first} bf16`)));
    const found = [own?.rows ?? [], [...rows.values()]].map((from) => ratioRow(name, 'bf16', from));
    const row = found.find(({ kind }) => kind === 'ratio');
    if (row !== undefined) rows.set(key, row);
  }
  return { reports, rows: [...rows.values()], growth: [...growth.values()] };
}

const keyOf = ({ name, dtype }) => `${name} ${dtype}`;

const cell = (text) => String(text).replaceAll('|', '\\|');
const line = (cells) => `| ${cells.map(cell).join(' | ')} |`;
const markdown = ({ head, rows }) =>
  [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');

/** A machine's blocks by name; each is the text between its two marks. */
async function blocks(machine, { reports, rows, growth }) {
  const tables = await import('../build/harness/tables.js');
  const last = reports.at(-1);
  const best = { ...last.machine };
  for (const report of reports) {
    for (const key of ['peakF32', 'peakBf16', 'memoryBandwidth']) {
      best[key] = Math.max(best[key], report.machine[key]);
    }
  }
  const warnings = merged([...new Set(reports.flatMap((report) => report.warnings))]);
  const dates = [reports[0].date.slice(0, 10), last.date.slice(0, 10)];
  const when = dates[0] === dates[1] ? dates[0] : dates.join(' to ');
  const targets = [];
  const unmeasured = new Set();
  for (const target of targetsOf(best)) {
    const reached = target.reached(rows);
    const verdict = reached?.met ? 'met' : '**missed**';
    if (reached === null) unmeasured.add(target.name ?? target.what);
    else targets.push([target.what, target.must, target.aim, reached.text, verdict]);
  }
  return {
    machine: [
      `Measured ${when} on:`,
      '',
      ...tables
        .machineText(best)
        .split('\n')
        .map((text) => `- ${text}`),
    ].join('\n'),
    targets: [
      markdown({ head: ['what', 'must', 'aim', 'reached', ''], rows: targets }),
      ...(unmeasured.size === 0
        ? []
        : ['', `Not measured with these: ${[...unmeasured].join('; ')}.`]),
    ].join('\n'),
    training: markdown(tables.stepTable(rows)),
    split: markdown(tables.splitTable(rows)),
    torch: markdown(tables.torchTable(rows)),
    other: markdown(tables.otherTable(rows)),
    kernels: markdown(tables.microTable(rows)),
    growth: [
      markdown(tables.growthTable(growth)),
      '',
      ...[...new Set(growth.map(({ axis }) => axis))].map(
        (axis) => `![${axis}](images/${machine}/growth-${axis}.svg)`,
      ),
    ].join('\n'),
    warnings: warnings.length === 0 ? 'None.' : warnings.map((text) => `- ${text}`).join('\n'),
    fast: markdown(summary(rows)),
  };
}

/** Warnings of which those that differ by their numbers alone are one, with the ranges of these. */
function merged(warnings) {
  const number = /(?<= )\d+(?:\.\d+)?(?=[ %]|$)/g;
  const groups = new Map();
  for (const text of warnings) {
    const kind = text.replace(number, '#');
    groups.set(kind, [...(groups.get(kind) ?? []), text.match(number) ?? []]);
  }
  return [...groups].map(([kind, found]) => {
    let i = 0;
    return kind.replaceAll('#', () => {
      const sorted = found.map((numbers) => numbers[i]).sort((a, b) => a - b);
      i++;
      return [...new Set([sorted[0], sorted.at(-1)])].join(' to ');
    });
  });
}

/** The README's table: the results for a user, beside those of torch. */
function summary(rows) {
  const head = ['SmolLM2-135M, r 16', 'type', 'tokens/s', 'peak memory', 'against PyTorch'];
  const wanted = {
    'balora-4x512': 'BA-LoRA, 4 x 512',
    'balora-gsm8k': 'BA-LoRA, GSM8K rows',
    'lora-4x512': 'LoRA, 4 x 512',
  };
  const place = (row) => Object.keys(wanted).indexOf(row.name);
  const lines = rows
    .filter((row) => row.kind === 'step' && row.name in wanted && row.torch)
    .sort((a, b) => place(a) - place(b) || a.dtype.localeCompare(b.dtype))
    .map((row) => [
      wanted[row.name],
      row.dtype,
      row.tokensPerSecond.toFixed(0),
      `${(row.peakBytes / 2 ** 30).toFixed(2)} GiB`,
      `${row.torch.speedRatio.median.toFixed(1)} times the speed, 1/${row.torch.memoryRatio.median.toFixed(1)} of the memory`,
    ]);
  return { head, rows: lines };
}

/** A page with the text between `<!-- bench:NAME -->` and `<!-- /bench -->` replaced. */
function filled(page, text, made) {
  const block = /(<!-- bench:([\w/-]+) -->\n)[\s\S]*?(<!-- \/bench -->)/g;
  return text.replace(block, (_, open, name, close) => {
    if (!(name in made)) {
      const known = Object.keys(made).join(', ');
      throw new SetupError(`${page}: no block is called "${name}"; use one of ${known}`);
    }
    return `${open}${made[name]}\n${close}`;
  });
}

await main(async ([flag]) => {
  const check = flag === '--check';
  await ensureBench();
  const { growthCharts } = await import('../bench/charts.mjs');
  const made = {};
  const files = new Map();
  for (const machine of readdirSync(kResults).sort()) {
    const collected = await collect(machine);
    for (const [name, text] of Object.entries(await blocks(machine, collected))) {
      made[`${machine}/${name}`] = text;
    }
    for (const [name, svg] of Object.entries(growthCharts(collected.growth))) {
      files.set(`${kImages}/${machine}/${name}`, svg);
    }
  }
  for (const page of kPages) {
    files.set(inRoot(page), filled(page, readFileSync(inRoot(page), 'utf8'), made));
  }
  for (const [path, text] of files) {
    if (!check) {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, text);
    } else if (!existsSync(path) || readFileSync(path, 'utf8') !== text) {
      throw new SetupError(`${path} is stale: run npm run gen:performance`);
    }
  }
});

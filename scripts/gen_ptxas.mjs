// Writes the table of hot CUDA kernels into docs/gpu-performance.md: `npm run gen:ptxas`, after `npm run build:cuda`. It holds the
// registers that ptxas reports and the share of a multiprocessor's warps that these and shared memory allow. `--check` only
// compares, where nvcc exists and the log is as new as the sources, and otherwise prints the reason why it does not.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { kPtxasLog, newerSource, nvccMissing } from './support/cuda_build.mjs';
import { latestRows, occupancy } from './support/ptxas.mjs';
import { inRoot, main, SetupError, say } from './support/shell.mjs';

/**
 * The kernels that take most of a step's time (file: function, and the beginning of the arguments where instances differ), the
 * threads of their blocks, and the dynamic shared memory that the launch requests, in bytes.
 */
const kHot = [
  ['attention: forward', 128, 'D = 64', /Li64E/, attentionShared(64, 128)],
  ['attention: forward', 128, 'D = 128', /Li128E/, attentionShared(128, 128)],
  ['attention_backward: backward', 128, 'D = 64', /Li64E/, attentionShared(64, 64)],
  ['attention_backward: backward', 128, 'D = 128', /Li128E/, attentionShared(128, 64)],
  ['linear_sum: sum_products', 128, '128 x 128', /Li128E/, 3 * 2 * 128 * 32 * 2],
  ['head_rows: head_rows', 512, '', /^If/, 11904], // HeadScratch::bytes() of head_rows.cu
  ['norm: normalise_rows', 256],
  ['norm: norm_gradients', 256],
  ['layer_norm: normalise_rows', 256],
  ['softmax: normalise_rows', 512],
  ['cross_entropy: row_losses', 256],
  ['gated: gated_groups', 256],
  ['gated: gated_gradients', 256],
  ['rope: rotate', 256],
  ['accumulate: accumulate_groups', 256],
  ['optimizer: adamw_tensors', 256],
];
const kArchitectures = ['sm_80', 'sm_86', 'sm_89', 'sm_90'];

/**
 * Shared memory of tiles of 16-bit elements, rows padded by eight: `rows` that stay (of q; of k and v in the backward, twice) and
 * two stages of two tiles that move (attention.cu, attention_backward.cu).
 */
function attentionShared(size, rows) {
  const row = (size + 8) * 2;
  const moving = size > 64 ? 32 : 64;
  return (rows === 64 ? 2 : 1) * rows * row + 2 * 2 * moving * row;
}

/** The instantiation of a kernel that needs most registers. f64 is for research and left out. */
function heaviest(rows, name, instance, architecture) {
  const own = rows.filter(({ kernel, architecture: its }) => {
    if (its !== architecture || !kernel.startsWith(`${name} `)) return false;
    const rest = kernel.slice(name.length + 1);
    return !/^I(L(i|\d+\w+?)\d+E)?d/.test(rest) && (!instance || instance.test(rest));
  });
  return own.reduce((most, row) => (!most || row.registers > most.registers ? row : most), null);
}

function table(rows) {
  const head = [
    'kernel',
    'threads',
    ...kArchitectures,
    'spilled',
    'static',
    'dynamic shared bytes',
  ];
  const lines = kHot.map(([name, threads, of = '', instance = null, dynamic = 0]) => {
    const found = kArchitectures.map((architecture) =>
      heaviest(rows, name, instance, architecture),
    );
    if (found.includes(null)) {
      throw new SetupError(
        `${name} ${of} is not in ${kPtxasLog}: mend kHot, or remove build/cuda and run npm run build:cuda`,
      );
    }
    const cells = found.map(
      (row) => `${row.registers} (${Math.round(100 * occupancy(row, threads, dynamic))} %)`,
    );
    const most = (key) => Math.max(...found.map((row) => row[key]));
    const title = of ? `${name}, ${of}` : name;
    return [title, threads, ...cells, most('spilled'), most('shared'), dynamic];
  });
  return [head, head.map(() => '---'), ...lines].map((row) => `| ${row.join(' | ')} |`).join('\n');
}

/** The reason why a check would compare with nothing, or null. */
function cannotCheck() {
  const missing = nvccMissing();
  if (missing) return missing;
  if (!existsSync(kPtxasLog)) return 'there is no log of npm run build:cuda';
  const newer = newerSource(kPtxasLog);
  return newer ? `${newer} is newer than the log of npm run build:cuda` : null;
}

await main(([flag]) => {
  const check = flag === '--check';
  const reason = check ? cannotCheck() : null;
  if (reason) {
    say(`The table of registers is not compared: ${reason}.`);
    return 0;
  }
  if (!existsSync(kPtxasLog))
    throw new SetupError(`${kPtxasLog} is missing: run npm run build:cuda, then this again.`);
  const page = inRoot('docs', 'gpu-performance.md');
  const text = readFileSync(page, 'utf8');
  const made = table(latestRows(readFileSync(kPtxasLog, 'utf8')));
  const block = /(<!-- ptxas -->\n)[\s\S]*?(<!-- \/ptxas -->)/;
  const written = text.replace(block, (_, open, close) => `${open}${made}\n${close}`);
  if (written === text) return 0;
  if (check) throw new SetupError(`${page} is stale: run "npm run gen:ptxas".`);
  writeFileSync(page, written);
  return 0;
});

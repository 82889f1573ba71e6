// `npm run gen:ptxas`, after `npm run build:cuda`: writes the table of hot CUDA kernels into docs/performance.md, with what
// ptxas says of their registers and the share of a multiprocessor's warps that these allow.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { kPtxasLog } from './support/cuda_build.mjs';
import { occupancyByRegisters, parsePtxas } from './support/ptxas.mjs';
import { inRoot, main, SetupError } from './support/shell.mjs';

/** The kernels that a step's time goes to (file: function), and the threads of their blocks. */
const kHot = {
  'attention: forward': 128,
  'attention_backward: backward': 128,
  sum_products: 128,
  'head_losses: head_rows': 256,
  'norm: normalise_rows': 256,
  'norm: norm_gradients': 256,
  'layer_norm: normalise_rows': 256,
  'softmax: normalise_rows': 512,
  'cross_entropy: row_losses': 256,
  'gated: gated_groups': 256,
  'gated: gated_gradients': 256,
  'rope: rotate': 256,
  'accumulate: accumulate_groups': 256,
  'optimizer: adamw_groups': 256,
};
const kArchitectures = ['sm_80', 'sm_86', 'sm_89', 'sm_90'];

/** Of the instantiations of a kernel, the one that needs most. f64 is for research and left out. */
function heaviest(rows, name, architecture) {
  const own = rows.filter(
    ({ kernel, architecture: its }) =>
      kernel.startsWith(`${name} `) && its === architecture && !kernel.startsWith(`${name} Id`),
  );
  return own.reduce((most, row) => (!most || row.registers > most.registers ? row : most), null);
}

function table(rows) {
  const head = ['kernel', 'threads', ...kArchitectures, 'spilled bytes', 'static shared bytes'];
  const lines = Object.entries(kHot).map(([name, threads]) => {
    const found = kArchitectures.map((architecture) => heaviest(rows, name, architecture));
    if (found.includes(null)) throw new SetupError(`${name} is not in ${kPtxasLog}`);
    const cells = found.map(
      (row) => `${row.registers} (${Math.round(100 * occupancyByRegisters(row, threads))} %)`,
    );
    const most = (key) => Math.max(...found.map((row) => row[key]));
    return [name, threads, ...cells, most('spilled'), most('shared')];
  });
  return [head, head.map(() => '---'), ...lines].map((row) => `| ${row.join(' | ')} |`).join('\n');
}

await main(() => {
  if (!existsSync(kPtxasLog))
    throw new SetupError('There is no log: run npm run build:cuda first.');
  const page = inRoot('docs', 'performance.md');
  const made = table(parsePtxas(readFileSync(kPtxasLog, 'utf8')));
  const block = /(<!-- ptxas -->\n)[\s\S]*?(<!-- \/ptxas -->)/;
  writeFileSync(
    page,
    readFileSync(page, 'utf8').replace(block, (_, open, close) => `${open}${made}\n${close}`),
  );
});

// Writes docs/kernels.md, the table of kernels by device, from native/kernels/kernels.def and the sources that define
// them. `--check` only compares, and fails when the page is stale.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { inRoot, main, SetupError } from './support/shell.mjs';

const target = inRoot('docs', 'kernels.md');

/**
 * The rows of kernels.def in order: { name, comment }. The heading of a group names its files and facts that hold for all of its
 * rows, on as many lines as it takes; the comment of the first row begins with it.
 */
function readRows() {
  const rows = [];
  let comment = [];
  let note = '';
  for (const line of readFileSync(inRoot('native', 'kernels', 'kernels.def'), 'utf8').split('\n')) {
    const remark = /^\/\/ ?(.*)$/.exec(line)?.[1];
    const kernel = /^KERNEL(?:_ARGS)?\((\w+)/.exec(line)?.[1];
    if (remark !== undefined && /^\w+\.cc\b/.test(remark)) {
      note = remark.replace(/^(\w+\.cc(, )?)+[:;]?\s*/, '');
      comment = [];
    } else if (remark !== undefined) {
      comment.push(remark);
    } else if (kernel) {
      rows.push({ name: kernel, comment: joined(note, comment.join(' ')) });
      comment = [];
      note = '';
    } else if (line.trim() === '') {
      comment = [];
    }
  }
  return rows;
}

/** Joins a heading and the comment behind it, which continues the heading's sentence where that ends in a comma. */
function joined(note, comment) {
  if (!note || !comment) return note || comment;
  return `${note}${/[,.]$/.test(note) ? '' : '.'} ${comment}`;
}

/** A map from each NAME to the file that defines NAME_kernel, for the sources of a folder. */
function definitions(folder, ending) {
  const found = new Map();
  if (!existsSync(inRoot(folder))) return found;
  for (const file of readdirSync(inRoot(folder)).sort()) {
    if (!file.endsWith(ending)) continue;
    const source = readFileSync(inRoot(folder, file), 'utf8');
    for (const [, name] of source.matchAll(/^int32_t (\w+)_kernel\(/gm)) found.set(name, file);
  }
  return found;
}

const cell = (text) => text.replaceAll('|', '\\|').replaceAll('<', '\\<').replaceAll('*', '\\*');

function page() {
  const cpu = definitions('native/kernels/cpu', '.cc');
  const cuda = definitions('cuda', '.cu');
  const lines = readRows().map(({ name, comment }) => {
    const device = (files) => files.get(name) ?? '–';
    return `| \`${name}\` | ${device(cpu)} | ${device(cuda)} | ${cell(comment)} |`;
  });
  return `# Kernels

Generated from \`native/kernels/kernels.def\` by \`npm run gen:kernels\`; do not edit. A dash marks a kernel that the device
lacks; a plug-in that lacks one [is refused](devices.md#how-the-plug-in-is-found) with an error that names the kernel. Dimensions: B batch,
T time, N rows, C channels, V vocabulary, H heads, D head size, F mlp width, R rank, L layers. Float kernels of the CPU support f32, bf16, f16
and f64 unless the row says otherwise.

| kernel | cpu | cuda | what it does |
| --- | --- | --- | --- |
${lines.join('\n')}
`;
}

await main(([flag]) => {
  const text = page();
  if (flag !== '--check') {
    writeFileSync(target, text);
  } else if (!existsSync(target) || readFileSync(target, 'utf8') !== text) {
    throw new SetupError('docs/kernels.md is stale: run npm run gen:kernels');
  }
});

// Writes docs/kernels.md, the table of kernels by device, from native/kernels/kernels.def, the operands'
// structures and the sources that define the kernels. `--check` only compares, and fails when the page is stale.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inRoot, main, SetupError } from './support/shell.mjs';

const target = inRoot('docs', 'kernels.md');

/** The names of the rows, in the order of kernels.def. */
function rowNames() {
  const families = readFileSync(inRoot('native', 'kernels', 'kernels.def'), 'utf8');
  return [...families.matchAll(/^BALORA_(\w+)_KERNELS\(/gm)].flatMap(([, family]) => {
    const file = inRoot('native', 'kernels', 'operands', `${family.toLowerCase()}.h`);
    const rows = readFileSync(file, 'utf8').matchAll(/\bKERNEL\((\w+)\)/g);
    return [...rows].map(([, name]) => name);
  });
}

/** A map from each NAME to what kernels/operands/ says of balora_NAME: its comment, and its tensors with their shapes. */
function descriptions() {
  const found = new Map();
  const folder = inRoot('native', 'kernels', 'operands');
  for (const file of readdirSync(folder).sort()) {
    const source = readFileSync(join(folder, file), 'utf8');
    const structures = /((?:^\/\/.*\n)+)typedef struct balora_(\w+) \{\n([^}]*)\}/gm;
    for (const [, comment, name, fields] of source.matchAll(structures)) {
      const tensors = [...fields.matchAll(/balora_view\* (\w+);(?: *\/\/ (\(.*?\)))?/g)];
      const listed = tensors.map(([, field, shape]) => (shape ? `${field} ${shape}` : field));
      const sentence = comment
        .replaceAll(/^\/\/ */gm, '')
        .trim()
        .replaceAll('\n', ' ');
      found.set(name, { sentence, tensors: listed.join(', ') });
    }
  }
  return found;
}

/** A map from each NAME to the file that defines NAME_kernel, for the sources of a folder. */
function definitions(folder, ending) {
  const found = new Map();
  if (!existsSync(inRoot(folder))) return found;
  for (const file of readdirSync(inRoot(folder), { recursive: true }).sort()) {
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
  const described = descriptions();
  const lines = rowNames().map((name) => {
    const device = (files) => files.get(name) ?? '–';
    const { sentence, tensors } = described.get(name);
    return `| \`${name}\` | ${device(cpu)} | ${device(cuda)} | ${cell(sentence)} | ${cell(tensors)} |`;
  });
  return `# Kernels

Generated from \`native/kernels/kernels.def\` and \`native/kernels/operands/\` by \`npm run gen:kernels\`; do not edit. A dash marks a kernel that the device
lacks; a plug-in that lacks one [is refused](devices.md#how-the-plug-in-is-found) with an error that names the kernel. Dimensions: B batch,
T time, N rows, C channels, V vocabulary, H heads, D head size, F mlp width, R rank, L layers. Float kernels of the CPU support f32, bf16, f16
and f64 unless the row says otherwise.

| kernel | cpu | cuda | what it does | tensors |
| --- | --- | --- | --- | --- |
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

// Writes docs/kernels.md, the table of kernels by device, from native/kernels/kernels.def, the operands'
// structures and the sources that define the kernels. `--check` only compares, and fails when the page is stale.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { operandsOf } from './support/kernel_operands.mjs';
import { inRoot, main, SetupError } from './support/shell.mjs';

const target = inRoot('docs', 'kernels.md');

/** The rows of all families, in the order of kernels.def. */
function rows() {
  const families = readFileSync(inRoot('native', 'kernels', 'kernels.def'), 'utf8');
  return [...families.matchAll(/^BALORA_(\w+)_KERNELS\(/gm)].flatMap(([, family]) => {
    const file = `native/kernels/operands/${family.toLowerCase()}.h`;
    return operandsOf(file, readFileSync(inRoot(file), 'utf8'));
  });
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

function page() {
  const cpu = definitions('native/kernels/cpu', '.cc');
  const cuda = definitions('cuda', '.cu');
  const lines = rows().map(({ name, text, tensors }) => {
    const device = (files) => files.get(name) ?? '–';
    return `| \`${name}\` | ${device(cpu)} | ${device(cuda)} | ${text} | ${tensors} |`;
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

// Reads the headers of native/kernels/operands/: the rows of a family, and what their structures' comments say of them.
import { SetupError } from './shell.mjs';

/** Escapes what has a meaning in a cell of a table. */
const cell = (text) => text.replaceAll('|', '\\|').replaceAll('<', '\\<').replaceAll('*', '\\*');

/** A comment as a cell: its lines joined, and those that are indented, formulas, as code. */
function textOf(comment) {
  const lines = comment
    .trimEnd()
    .split('\n')
    .map((line) => line.slice('//'.length));
  const isFormula = (line) => line.startsWith('   ');
  const cells = lines.map((line, i) => {
    if (!isFormula(line)) return cell(line.trim());
    const code = `\`${line.trim().replaceAll('|', '\\|')}\``;
    const next = lines[i + 1] ?? '';
    if (isFormula(next)) return `${code},`;
    return /^ [A-Z]/.test(next) ? `${code}.` : code;
  });
  return cells.join(' ');
}

/**
 * The rows of a family in order: [{ name, text, tensors }], the last two as cells of a table in Markdown.
 * @param file the header's name, for errors
 * @param source its text
 * @throws SetupError for a row without a structure, or with one that has no comment
 */
export function operandsOf(file, source) {
  const structures = /((?:^\/\/.*\n)+)typedef struct balora_(\w+) \{\n([^}]*)\}/gm;
  const found = new Map();
  for (const [, comment, name, fields] of source.matchAll(structures)) {
    const tensors = [...fields.matchAll(/balora_view\* (\w+);(?: *\/\/ (\(.*?\)))?/g)];
    const listed = tensors.map(([, field, shape]) => (shape ? `${field} ${shape}` : field));
    found.set(name, { text: textOf(comment), tensors: cell(listed.join(', ')) });
  }
  return [...source.matchAll(/\bKERNEL\((\w+)\)/g)].map(([, name]) => {
    const operands = found.get(name);
    if (operands) return { name, ...operands };
    throw new SetupError(
      `${file}: the row KERNEL(${name}) needs a structure balora_${name} with a comment right above it`,
    );
  });
}

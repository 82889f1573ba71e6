/** Configuration files: YAML or JSON, a flat object of options. */
import { readFile } from 'node:fs/promises';
import { parseDocument } from 'yaml';
import { ArgumentError, FormatError } from '../errors.ts';

const kAdvice = 'correct this line of YAML';

/**
 * Reads a configuration file. JSON goes through the YAML parser too, since YAML includes it.
 * @throws FormatError naming file, line and column; ArgumentError if there is no such file
 */
export async function readConfigFile(path: string): Promise<Record<string, unknown>> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reason = code === 'ENOENT' ? 'no such file' : message;
    throw new ArgumentError(`cannot read the configuration ${path}: ${reason}; check the path`);
  }
  // prettyErrors: messages give line and column; uniqueKeys (on by default) refuses a key that is given twice.
  const document = parseDocument(text, { prettyErrors: true });
  const [error] = document.errors;
  if (error) {
    const { line = 1, col = 1 } = error.linePos?.[0] ?? {};
    const what = error.message.split(' at line')[0];
    throw new FormatError(`${path}:${line}:${col}: ${what}`, { path, advice: kAdvice });
  }
  let value: unknown;
  try {
    value = document.toJS();
  } catch (error) {
    // An alias (*name) without an anchor, or too many of them.
    const { message } = error as Error;
    throw new FormatError(`${path}: ${message}`, {
      path,
      advice: 'put quotes around a value that begins with *',
    });
  }
  if (value === null) return {};
  if (typeof value !== 'object' || Array.isArray(value)) {
    throw new FormatError(`${path}: must hold options by name`, {
      path,
      advice: 'write one option a line, such as learning-rate: 2e-5',
    });
  }
  return value as Record<string, unknown>;
}

/** Configuration files: YAML or JSON, a flat object of options. */
import { type Document, isScalar, parseDocument, visit } from 'yaml';
import { ArgumentError, FormatError } from '../errors.ts';
import { isMissing, readText } from '../io/regular_file.ts';

const kAdvice = 'correct this line of YAML';
/** Largest size of a configuration, which is far above that of all options together. */
const kMaxBytes = 2 ** 18;
/** Largest number of aliases that are followed; options are a flat list, for which none are needed. */
const kMaxAliases = 100;

/**
 * Reads a configuration file. JSON goes through the YAML parser too, since YAML includes it.
 * @throws FormatError naming file, line and column, or as readText does; ArgumentError if there is no such file
 */
export async function readConfigFile(path: string): Promise<Record<string, unknown>> {
  let text: string;
  try {
    text = await readText(path, { limit: kMaxBytes });
  } catch (error) {
    if (!isMissing(error)) throw error;
    throw new ArgumentError(`cannot read the configuration ${path}: no such file; check the path`);
  }
  const document = parsed(path, text);
  // A warning, such as one of a tag that is not known, says that a value is not what was written.
  const [error] = [...document.errors, ...document.warnings];
  if (error) {
    const { line = 1, col = 1 } = error.linePos?.[0] ?? {};
    const what = error.message.split(' at line')[0];
    throw new FormatError(`${path}:${line}:${col}: ${what}`, { path, advice: kAdvice });
  }
  refuseOddKeys(path, text, document);
  let value: unknown;
  try {
    value = document.toJS({ maxAliasCount: kMaxAliases });
  } catch (error) {
    // An alias (*name) without an anchor, or aliases that stand for a huge value.
    const { message } = error as Error;
    const bomb = /excessive alias count/i.test(message);
    throw new FormatError(`${path}: ${bomb ? `more than ${kMaxAliases} aliases` : message}`, {
      path,
      advice: bomb ? 'write the values themselves' : 'put quotes around a value that begins with *',
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

/** Refuses a key that is a list, an object or an alias: it would become a text. @throws FormatError with its line */
function refuseOddKeys(path: string, text: string, document: Document.Parsed): void {
  visit(document, {
    Pair: (_, { key }) => {
      if (key === null || isScalar(key)) return;
      const [offset = 0] = (key as { range?: readonly number[] | null }).range ?? [];
      const line = text.slice(0, offset).split('\n').length;
      throw new FormatError(`${path}:${line}: a key must be the name of an option`, {
        path,
        advice: kAdvice,
      });
    },
  });
}

/** Parses YAML. @throws FormatError for lists in lists of such a depth that the parser's recursion does not end */
function parsed(path: string, text: string): Document.Parsed {
  try {
    // Messages give line and column (prettyErrors); uniqueKeys (on by default) refuses a key that is given twice.
    return parseDocument(text, { prettyErrors: true });
  } catch (error) {
    throw new FormatError(`${path}: cannot be parsed (${(error as Error).message})`, {
      path,
      advice: 'write one option a line, such as learning-rate: 2e-5',
    });
  }
}

/** YAML files of options by name, with the lines on which these stand. JSON goes through the YAML parser too, since YAML includes it. */
import { type Document, isMap, isScalar, LineCounter, Parser, parseDocument, visit } from 'yaml';
import { FormatError, fileError } from '../errors.ts';
import { isMissing, readText } from './regular_file.ts';

/** Largest size of a file, which is far above that of all options together. */
const kMaxBytes = 2 ** 18;
/** Largest number of aliases that are followed; options are a flat list, for which none are needed. */
const kMaxAliases = 100;

/** The kind of a file, as messages name it. */
export interface YamlFileKind {
  /** Name of the file, behind "the". */
  readonly noun: string;
  /** A line as an example for advice. */
  readonly example: string;
}

/** The values of a file. */
export interface YamlFile {
  readonly values: Record<string, unknown>;
  /** The line, from 1, on which a key of the file stands, or a place within its value; that of the key where there is no such place. */
  lineOf(path: readonly (string | number)[]): number;
}

/**
 * Reads a file.
 * @throws FormatError naming file, line and column, or as readText does
 */
export async function readYamlFile(path: string, kind: YamlFileKind): Promise<YamlFile> {
  let text: string;
  try {
    text = await readText(path, { limit: kMaxBytes });
  } catch (error) {
    if (!isMissing(error)) throw error;
    throw new FormatError(`cannot read the ${kind.noun} ${path}: no such file`, {
      ...{ path, cause: error },
      advice: 'check the path',
    });
  }
  const lines = new LineCounter();
  const document = parsed(path, text, { lines, kind });
  // A warning, such as one of a tag that is not known, says that a value is not what was written.
  const [error] = [...document.errors, ...document.warnings];
  if (error) {
    const { line = 1, col = 1 } = error.linePos?.[0] ?? {};
    const what = error.message.split(' at line')[0];
    throw new FormatError(`${path}:${line}:${col}: ${what}`, { path, advice: kAdvice });
  }
  refuseOddKeys(path, text, document);
  return { values: valuesOf(path, document, kind), lineOf: (at) => lineOf(document, lines, at) };
}

const kAdvice = 'correct this line of YAML';

function valuesOf(
  path: string,
  document: Document.Parsed,
  kind: YamlFileKind,
): Record<string, unknown> {
  let value: unknown;
  try {
    value = document.toJS({ maxAliasCount: kMaxAliases });
  } catch (error) {
    // An alias (*name) without an anchor, or aliases that stand for a huge value.
    const { message } = error as Error;
    const bomb = /excessive alias count/i.test(message);
    throw fileError(
      path,
      `${bomb ? `more than ${kMaxAliases} aliases` : message}`,
      bomb ? 'write the values themselves' : 'put quotes around a value that begins with *',
    );
  }
  if (value === null) return {};
  if (typeof value !== 'object' || Array.isArray(value)) {
    throw fileError(path, 'must hold options by name', adviceOf(kind));
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

/** The part of a parser's token that nests. */
interface Token {
  readonly value?: Token | string;
  readonly items?: readonly { readonly key?: Token | null; readonly value?: Token }[];
}

/** Largest depth of lists and objects within each other; those of options are two deep. */
const kMaxDepth = 100;

/** @throws FormatError for lists in lists of a depth at which the recursion that makes values of them would end the process */
function refuseDepth(path: string, text: string, kind: YamlFileKind): void {
  for (const document of new Parser().parse(text)) {
    const open: [token: Token, depth: number][] = [[document as Token, 0]];
    for (let next = open.pop(); next !== undefined; next = open.pop()) {
      const [{ value, items = [] }, depth] = next;
      if (depth > kMaxDepth) {
        throw fileError(path, `nests deeper than ${kMaxDepth}`, adviceOf(kind));
      }
      if (typeof value === 'object') open.push([value, depth]);
      for (const item of items) {
        for (const inner of [item.key, item.value]) if (inner) open.push([inner, depth + 1]);
      }
    }
  }
}

/** Parses YAML. @throws FormatError for what cannot be parsed */
function parsed(
  path: string,
  text: string,
  { lines, kind }: { lines: LineCounter; kind: YamlFileKind },
): Document.Parsed {
  refuseDepth(path, text, kind);
  try {
    // Messages give line and column (prettyErrors); uniqueKeys (on by default) refuses a key that is given twice.
    return parseDocument(text, { prettyErrors: true, lineCounter: lines });
  } catch (error) {
    throw fileError(path, `cannot be parsed (${(error as Error).message})`, adviceOf(kind));
  }
}

function adviceOf({ example }: YamlFileKind): string {
  return `write one option a line, such as ${example}`;
}

/** The line of the innermost part of a place that the document has. */
function lineOf(
  document: Document.Parsed,
  lines: LineCounter,
  at: readonly (string | number)[],
): number {
  for (let length = at.length; length > 1; length--) {
    const found = startOf(document.getIn(at.slice(0, length), true));
    if (found !== null) return lines.linePos(found).line;
  }
  const pairs = isMap(document.contents) ? document.contents.items : [];
  const pair = pairs.find(({ key }) => isScalar(key) && key.value === at[0]);
  return lines.linePos(startOf(pair?.key) ?? 0).line;
}

/** The offset in the text at which a part of a document begins; null: it is none. */
function startOf(node: unknown): number | null {
  return (node as { range?: readonly number[] | null } | undefined)?.range?.[0] ?? null;
}

// The public names: their number, that each has a doc comment, and that a page mentions it. This test writes
// docs/public-names.md, the list of all of them: `npm run gen:exports`.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));
const kList = 'public-names.md';
const kMostValues = 80;
const kMostTypes = 130;

interface Manifest {
  exports: Record<string, string | { types: string; default: string }>;
}
const manifest = JSON.parse(readFileSync(join(kRoot, 'package.json'), 'utf8')) as Manifest;

/** The code entries of package.json (`balora`, `balora/ops`, ...) with the sources that they are built from. */
const kEntries = Object.entries(manifest.exports).flatMap(([path, files]) =>
  typeof files === 'string'
    ? []
    : [{ name: path.replace('.', 'balora'), files, source: sourceOf(files.default) }],
);

function sourceOf(built: string): string {
  return built.replace('./dist/', 'lib/').replace(/\.js$/, '.ts');
}

interface Export {
  readonly entry: string;
  readonly name: string;
  /** Whether it exists at run time. */
  readonly isValue: boolean;
  /** The file that declares it. */
  readonly declared: string;
  /** Its doc comment as text, links as code. */
  readonly doc: string;
  /** The version of its `@since` tag; names without one are as old as the first release with this page. */
  readonly since: string | null;
}

/** Whether an export specifier, or the declaration around it, is marked `type`. */
function isTypeOnly(symbol: ts.Symbol): boolean {
  const specifier = symbol.declarations?.find(ts.isExportSpecifier);
  return specifier !== undefined && (specifier.isTypeOnly || specifier.parent.parent.isTypeOnly);
}

function exportsOf(sources: readonly { name: string; source: string }[]): Export[] {
  const config = ts.readConfigFile(join(kRoot, 'tsconfig.json'), ts.sys.readFile).config;
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, kRoot);
  const program = ts.createProgram(
    sources.map(({ source }) => join(kRoot, source)),
    options,
  );
  const checker = program.getTypeChecker();
  return sources.flatMap(({ name: entry, source }) => {
    const file = program.getSourceFile(join(kRoot, source)) as ts.SourceFile;
    const module = checker.getSymbolAtLocation(file) as ts.Symbol;
    return checker.getExportsOfModule(module).map((exported) => {
      const alias = (exported.flags & ts.SymbolFlags.Alias) !== 0;
      const symbol = alias ? checker.getAliasedSymbol(exported) : exported;
      const isValue = (symbol.flags & ts.SymbolFlags.Value) !== 0 && !isTypeOnly(exported);
      const declared = symbol.declarations?.[0]?.getSourceFile().fileName ?? '';
      const parts = ts.displayPartsToString(symbol.getDocumentationComment(checker));
      const doc = parts.replace(/\{@link ([\w.]+)[^}]*\}/g, '`$1`').replace(/\s+/g, ' ');
      const tag = symbol.getJsDocTags(checker).find(({ name }) => name === 'since');
      const since = tag ? ts.displayPartsToString(tag.text).trim() : null;
      return { entry, name: exported.name, isValue, doc: doc.trim(), declared, since };
    });
  });
}

const byName = (a: Export, b: Export): number =>
  a.name.toLowerCase() < b.name.toLowerCase() ? -1 : 1;
const all = exportsOf(kEntries).sort(byName);
const of = (entry: string, isValue: boolean): Export[] =>
  all.filter((one) => one.entry === entry && one.isValue === isValue);
const names = (exports: readonly Export[]): string[] => exports.map(({ name }) => name);

/** The code on the hand-written pages: blocks, and words between backticks. */
const pages = readdirSync(join(kRoot, 'docs'))
  .filter((name) => name.endsWith('.md') && name !== kList)
  .map((name) => readFileSync(join(kRoot, 'docs', name), 'utf8'));
const code = pages
  .flatMap((text) => text.match(/^```[\s\S]*?^```|`[^`\n]+`/gm) ?? [])
  .join('\n')
  .match(/\w+/g);
const named = new Set(code);

describe('the root entry', () => {
  it('has few names', () => {
    expect(of('balora', true).length).toBeLessThanOrEqual(kMostValues);
    expect(of('balora', false).length).toBeLessThanOrEqual(kMostTypes);
    expect(of('balora', true).length).toBeGreaterThan(40); // names are found at all
    expect(of('balora', false).length).toBeGreaterThan(40);
  });

  it('has no value that no page mentions', () => {
    expect(names(of('balora', true)).filter((name) => !named.has(name))).toEqual([]);
  });
});

describe('every entry', () => {
  it('has a doc comment for each name', () => {
    const silent = all.filter(({ doc }) => !/[.:]/.test(doc) || /^See\b/.test(doc));
    expect(names(silent)).toEqual([]);
  });

  it('has no name with two meanings, and no value of another entry', () => {
    const first = new Map(all.map((one) => [one.name, one]));
    const clashes = all.filter((one) => {
      const other = first.get(one.name) as Export;
      return one.declared !== other.declared || (one.isValue && other.isValue && one !== other);
    });
    expect(names(clashes)).toEqual([]);
  });

  it('loads with the values that its types declare', async () => {
    for (const { name, source } of kEntries) {
      const module = (await import(join(kRoot, source))) as Record<string, unknown>;
      expect(Object.keys(module).sort(), name).toEqual(names(of(name, true)).sort());
    }
  });

  it('has its types beside it', () => {
    for (const { files } of kEntries) {
      expect(files.types).toBe(files.default.replace(/\.js$/, '.d.ts'));
    }
  });

  it('is in docs/public-names.md', async () => {
    await expect(page()).toMatchFileSnapshot(join(kRoot, 'docs', kList));
  });
});

/** The first sentence of a doc comment, for a cell of a table. */
function summary({ doc, since }: Export): string {
  const [sentence = doc] = doc.match(/^.*?[.:](?=\s+[A-Z`(]|$)/) ?? [];
  const text = sentence.replaceAll('|', '\\|').replaceAll('<', '\\<');
  return since === null ? text : `${text} Since ${since}.`;
}

function table(exports: readonly Export[]): string {
  const rows = exports.map((one) => `| \`${one.name}\` | ${summary(one)} |`);
  return ['| name | what it is |', '| --- | --- |', ...rows].join('\n');
}

function page(): string {
  const sections = kEntries.map(({ name }) => {
    const [values, types] = [of(name, true), of(name, false)];
    return [
      `## ${name}`,
      `${values.length} values`,
      table(values),
      `${types.length} types`,
      table(types),
    ].join('\n\n');
  });
  return `# Public names

Every name that the package exports, by entry, with the first sentence of its doc comment. Written from these by
\`npm run gen:exports\`; the pages of [the documentation](README.md) explain how they are used, and \`npm run docs\` writes the full
reference. What is not here is internal and may change at any time.

${sections.join('\n\n')}
`;
}

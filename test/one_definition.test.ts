// C++'s rule of one definition, by names: what two files of native/ or cuda/ define under one name in a namespace is one thing to the
// linker, which keeps either. A header that only some files include is no protection. The suite `odr` compares the definitions
// themselves, as the compiler saw them; here are also the twins that are alike by chance.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const kRoot = fileURLToPath(new URL('..', import.meta.url));

/** A source without comments, the contents of strings, preprocessor lines and lines that are a macro alone. */
function codeOf(source: string): string {
  return source
    .replace(/R"\((?:[^)]|\)(?!"))*\)"/g, '""')
    .replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '')
    .replace(/"(\\.|[^"\\\n])*"/g, '""')
    .replace(/'(\\.|[^'\\\n])+'/g, "' '")
    .replace(/^[ \t]*#(?:.*\\\n)*.*$/gm, '')
    .replace(/^[A-Z_]+\([^()]*\)$/gm, '');
}

/** The index behind the brace that closes the one before `at`. */
function behindBlock(code: string, at: number): number {
  let depth = 1;
  let i = at;
  for (; i < code.length && depth > 0; ++i) {
    if (code[i] === '{') depth += 1;
    if (code[i] === '}') depth -= 1;
  }
  return i;
}

/** The name that the header of a block at the level of a namespace defines: a type by its name, a function by its name and parameters. */
function definedBy(header: string): string | null {
  const plain = header
    .replace(/\s+/g, ' ')
    .trim()
    .replace(/^template <.*?> ?(?=class|struct|[a-zA-Z_])/, '');
  const type =
    /^(?:class|struct|union|enum(?: class)?) (?:alignas\(\w+\) )?(\w+)(?: final)?(?: : .*)?$/.exec(
      plain,
    );
  if (type) return `type ${type[1]}`;
  if (
    /^(class|struct|union|enum)\b/.test(plain) ||
    /\bstatic\b|\boperator\b|=/.test(plain.split('(')[0] ?? '')
  ) {
    return null; // a specialisation, what only its file sees, a variable
  }
  const [, name] =
    /(?<![:\w])(\w+) ?\(/.exec(
      plain.replace(
        /^(?:\w+_TARGET|BALORA_\w+|__global__|__device__|__host__|\[\[\w+\]\]|\s)+/,
        '',
      ),
    ) ?? [];
  const open = name === undefined ? -1 : plain.indexOf(`${name}(`);
  return open < 0 ? null : `function ${plain.slice(open)}`;
}

/** The names that a source defines in namespaces that other files can enter. */
function definitions(source: string): string[] {
  const code = codeOf(source);
  const spaces: string[] = [];
  const found: string[] = [];
  let header = '';
  for (let i = 0; i < code.length; ++i) {
    const c = code[i];
    if (c === ';') header = '';
    else if (c === '}') {
      spaces.pop();
      header = '';
    } else if (c === '{') {
      const space = /^\s*(?:inline )?namespace ?([\w:]*)\s*$|^\s*(extern "")\s*$/.exec(header);
      if (space) spaces.push(space[2] ? '' : space[1] || '(none)');
      else {
        const name = definedBy(header);
        const path = spaces.filter((one) => one !== '').join('::');
        if (name !== null && !spaces.includes('(none)')) found.push(`${path}: ${name}`);
        i = behindBlock(code, i + 1) - 1;
      }
      header = '';
    } else header += c;
  }
  return found;
}

/** A complaint for each name that several files define. */
function twins(files: { path: string; source: string }[]): string[] {
  const by = new Map<string, Set<string>>();
  for (const { path, source } of files) {
    for (const name of definitions(source)) by.set(name, (by.get(name) ?? new Set()).add(path));
  }
  return [...by]
    .filter(([, paths]) => paths.size > 1)
    .map(([name, paths]) => `${name} is defined in ${[...paths].sort().join(' and in ')}`);
}

/** Files that a build takes in the place of another system's. */
const kOfOtherSystems = new Set(['native/platform/macos.cc']);

function filesOf(folders: string[]): { path: string; source: string }[] {
  return folders
    .flatMap((folder) =>
      readdirSync(join(kRoot, folder), { recursive: true })
        .map((name) => `${folder}/${String(name)}`)
        .filter((name) => /\.(h|cc|cu|cuh)$/.test(name) && !kOfOtherSystems.has(name)),
    )
    .map((path) => ({ path, source: readFileSync(join(kRoot, path), 'utf8') }));
}

it('finds types and functions of one name in two files, and no others', () => {
  const arena = 'namespace balora {\nclass Arena {\n  int a;\n};\n}  // namespace balora\n';
  const sum = (body: string) =>
    `namespace balora::x {\ntemplate <typename T>\ninline T sum(const T* a, int64_t n) {\n  ${body}\n}\n}\n`;
  expect(
    twins([
      { path: 'a.h', source: `${arena}${sum('return a[0];')}` },
      {
        path: 'b.h',
        source: `${arena.replace('int a', 'char* base')}${sum('if (n) { return a[1]; }')}`,
      },
      {
        path: 'c.cc',
        source: `namespace balora {\nnamespace {\nclass Arena {};\n}\nint Arena::used() { return 0; }\n}`,
      },
      {
        path: 'd.h',
        source:
          'namespace balora::y {\nclass Arena;\ntemplate <>\nstruct Arena<int> {};\nint sum(int a);\n}',
      },
    ]),
  ).toEqual([
    'balora: type Arena is defined in a.h and in b.h',
    'balora::x: function sum(const T* a, int64_t n) is defined in a.h and in b.h',
  ]);
});

it('no name of native/ is defined in two files', () => {
  const files = filesOf(['native']);
  expect(files.flatMap(({ source }) => definitions(source)).length).toBeGreaterThan(1000);
  expect(twins(files)).toEqual([]);
});

it('no name of the plug-in is defined in two files', () => {
  expect(
    twins(filesOf(['cuda', 'native/kernels/shared', 'native/kernels/operands', 'native/tensor'])),
  ).toEqual([]);
});

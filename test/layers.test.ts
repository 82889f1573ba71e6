// Rules of the architecture and of style: which folder of native/ may include which, which code may use Node, a banner per file. The
// lint checks TypeScript: import cycles by biome's rule noImportCycles (biome.json), layers and packages by dependency-cruiser
// (.dependency-cruiser.mjs); tests here show that both find what they look for. A new folder or a new exception of native/ is added here,
// with its reason, in the commit that needs it.
import { spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const kRoot = fileURLToPath(new URL('..', import.meta.url));

/** C++: the layers (folders of native/) that a layer may include beside itself, or parts of them. Lowest first. */
const kNativeLayers: Record<string, string[]> = {
  // The processor and the system.
  platform: [],
  tensor: ['platform'],
  kernels: ['tensor', 'platform'],
  engine: ['kernels', 'tensor', 'platform'],
  tape: ['engine', 'kernels', 'tensor', 'platform'],
  ops: ['tape', 'engine', 'kernels', 'tensor', 'platform'],
  // The formulas of blocks, which every device has in common with the readers of files.
  io: ['kernels/shared', 'tensor', 'platform'],
  binding: ['io', 'ops', 'tape', 'engine', 'kernels', 'tensor', 'platform'],
};

/** Headers of a system, behind native/platform/, and those by which a file would ask the processor itself. */
const kSystemHeaders = /^(sys\/.*|unistd|fcntl|dlfcn|sched|signal|malloc|windows|cpuid)\.h$/;

/** Implementation files (never headers) that include a higher layer, and the reason. */
const kNativeExceptions: Record<string, string[]> = {
  // Tensor::empty asks the engine for memory and requires_grad asks the tape; tensor.h only declares both.
  'native/tensor/tensor.cc': ['engine', 'tape'],
  // Backward sums gradients with the ordinary add.
  'native/tape/tape.cc': ['ops'],
};

const kHarness = 'bench/harness';

function filesBelow(folder: string, ending: RegExp): string[] {
  return readdirSync(join(kRoot, folder), { recursive: true })
    .map((name) => `${folder}/${String(name)}`)
    .filter((name) => ending.test(name))
    .sort();
}
const read = (path: string): string => readFileSync(join(kRoot, path), 'utf8');
const nativeFiles = filesBelow('native', /\.(h|cc|def)$/);
const cudaFiles = filesBelow('cuda', /\.(cu|cuh|h|def)$/);
const kVariablesFile = 'native/platform/environment.h';
const libFiles = filesBelow('lib', /\.ts$/);
const harnessFiles = filesBelow(kHarness, /\.ts$/);

/** The variables of the environment that a source asks for; where it does not name one, its argument. */
function variablesAsked(source: string): string[] {
  const code = source
    .replace(/\/\/.*$/gm, '')
    // The function that common.cuh makes of the pointer asks with its own parameter.
    .replace(/variable_of\(Context\* ctx, const char\* name\)|ctx->variable\(name\)/g, '');
  return Array.from(code.matchAll(/\bvariable(?:_of)?\(([^()]*)\)/g), ([, argument = '']) =>
    argument.replace(/^(?:ctx, )?"(\w+)"$/, '$1'),
  );
}

/** One complaint for each include of a C++ file that its layer does not allow. */
function nativeComplaints(path: string, source: string): string[] {
  const layer = path.split('/')[1] ?? '';
  const allowed = kNativeLayers[layer];
  if (!allowed) return [`${path}: native/${layer} is not in the table of layers`];
  const wanted = [...allowed, layer, ...(kNativeExceptions[path] ?? [])];
  const complaints: string[] = [];
  for (const [, mark, name = ''] of source.matchAll(/^\s*#\s*include\s*([<"])([^>"]+)[>"]/gm)) {
    const head = name.split('/')[0] ?? '';
    if (mark === '"' && !name.includes('/')) {
      complaints.push(`${path}: "${name}" must be named from native/`);
    } else if (head in kNativeLayers && !wanted.some((one) => name.startsWith(`${one}/`))) {
      complaints.push(`${path}: ${layer} may not include ${name}`);
    } else if (layer !== 'binding' && /^(napi|node_api|js_native_api|node|uv|v8)\b/.test(name)) {
      complaints.push(`${path}: only binding knows Node, found ${name}`);
    } else if (layer !== 'platform' && kSystemHeaders.test(name)) {
      complaints.push(`${path}: only platform calls the system, found ${name}`);
    }
  }
  return complaints;
}

/** A complaint for each place where a source that every processor compiles knows one of them. */
function processorComplaints(path: string, source: string): string[] {
  if (/^native\/platform\/|\/x86\//.test(path)) return [];
  const includes = source.matchAll(/#\s*include\s*"[^"]*\/x86\/[^"]*"/g);
  const asks = source.matchAll(/\b(?:__x86_64__|__AVX\w*|__aarch64__|__ARM\w*|_M_\w+64)\b/g);
  return [...includes, ...asks].map(([found]) => `${path}: knows a processor, found ${found}`);
}

/** A complaint for each list of implementations of a source that implementations.def has no name of. */
function listComplaints(path: string, source: string, listed: string): string[] {
  const lists = source.matchAll(/^constexpr (?:Core|Implementation)\w*<.*> (\w+)\[\] = \{$/gm);
  return Array.from(lists, ([, list = '']) => list)
    .filter((list) => {
      const named = source.match(`BALORA_IMPLEMENTATIONS\\((\\w+), (?:\\w+::)?${list}\\)`)?.[1];
      return !named || !listed.includes(`LIST(${named})`);
    })
    .map((list) => `${path}: ${list} is no list of implementations.def`);
}

/** Files outside of lib/io that open files without it, none of which a user names, and why. */
const kOpeners: Record<string, string> = {
  'lib/tasks/teacher_cache.ts': 'reads and writes records in place, and requires a regular file',
};

/** A complaint for each import of lib/ outside of lib/io by which a file can be opened past regular_file.ts. */
function openingComplaints(path: string, source: string): string[] {
  if (path.startsWith('lib/io/') || path in kOpeners) return [];
  const names = /\b(readFile|open|createReadStream|readFileSync|openSync|opendir|opendirSync)\b/;
  return [...source.matchAll(/^import ([^;]*?) from 'node:fs(?:\/promises)?';/gm)]
    .filter(([, what = '']) => names.test(what) || !what.includes('{'))
    .map(([, what]) => `${path}: lib/io opens files, found ${what}`);
}

/** Patterns of characters that are not seen, by which a text would be made printable. */
const kInvisible =
  /\\p\{C[cfs]?\}|\\p\{Z[lp]\}|\\x(?:00|1[bf]|7f|9[bf])|\\u00(?:00|1[bf]|7f|9[bf])|\\u202[89ae]|\\u206[69]|stripVTControl/i;

/** Files besides lib/shown.ts that name such characters, and why. */
const kNamers: Record<string, string> = {
  'lib/cli/terminal.ts': "the codes of the program's own colours",
  'lib/cli/progress.ts': 'the code that erases the line',
  'lib/adapters/python_json.ts': 'writes JSON as Python does',
  'lib/eval/python_text.ts': 'white space as Python has it',
  'lib/generate/options.ts': 'refuses half a character',
};

/** A complaint for each line of lib/ that makes texts printable in another way than lib/shown.ts. */
function printableComplaints(path: string, source: string): string[] {
  // The rules of tokenizers are about such characters; texts of theirs are in no message.
  if (path === 'lib/shown.ts' || path.startsWith('lib/text/') || path in kNamers) return [];
  const code = source.replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '');
  const own =
    /\bfunction (?:printable|sanitize|escapeControl)|\bconst (?:printable|sanitize)\w* =/i;
  return code
    .split('\n')
    .filter((line) => kInvisible.test(line) || own.test(line))
    .map((line) => `${path}: lib/shown.ts makes texts printable, found ${line.trim()}`);
}

/** Constructs that only one file of cuda/ may contain, since the emulated device has to replace or watch them. */
const kCudaOnlyIn: [what: string, pattern: RegExp, file: string][] = [
  ['a launch', /<<</, 'cuda/runtime/common.cuh'],
  [
    'the launch of a driver or run-time call',
    /\bcu(da)?LaunchKernel\w*/,
    'cuda/runtime/common.cuh',
  ],
  ['PTX', /\basm\b|__asm__/, 'cuda/device/instructions.cuh'],
  ['__shared__', /__shared__/, 'cuda/device/block.cuh'],
];

/** One complaint for each of these constructs in another file. */
function cudaComplaints(path: string, source: string): string[] {
  const code = source.replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '').replace(/"(\\.|[^"\\\n])*"/g, '""');
  return kCudaOnlyIn
    .filter(([, pattern, file]) => file !== path && pattern.test(code))
    .map(([what, , file]) => `${path}: ${what} belongs to ${file}`);
}

/** The comments of a source that stand on lines of their own. */
function commentsOf(source: string): { line: number; text: string[] }[] {
  const comments: { line: number; text: string[] }[] = [];
  let before = '';
  for (const [i, line] of source.split('\n').entries()) {
    const found = /^\s*(\/\/|\/\*\*|\*(?!\/))(?: (.*?))?(?: ?\*\/)?$/.exec(line);
    const [, mark = '', text = ''] = found ?? [];
    const continues = mark === '//' ? before === '//' : mark === '*' && before !== '';
    if (mark === '/**' || (mark === '//' && !continues)) comments.push({ line: i + 1, text: [] });
    if (mark === '/**' || mark === '//' || continues) comments.at(-1)?.text.push(text);
    before = mark === '*' && !continues ? '' : mark;
  }
  return comments;
}

/**
 * A complaint for each paragraph of a comment that begins with With, What, Of or As, or has a line that begins a sentence with What or
 * Of; for each paragraph that ends in a line of one word (a path may stand there), and for each comment line of C++ that is longer
 * than clang-format allows code to be.
 */
function commentComplaints(path: string, source: string): string[] {
  const complaints = commentsOf(source).flatMap(({ line, text }) => {
    const first = text.flatMap((words, i) => {
      const before = text[i - 1] ?? '';
      const begins = before === '' || before.startsWith('----') ? 'With|What|Of|As' : 'What|Of';
      if (begins === 'What|Of' && !/[.:]$/.test(before)) return [];
      const [found] = new RegExp(`^(${begins})\\b`).exec(words) ?? [];
      return found === undefined ? [] : [`begins with "${found}"`];
    });
    const single = text.flatMap((words, i) => {
      const ends = (text[i + 1] ?? '') === '' && text[i - 1]?.includes(' ');
      return ends && /^[^\s/]*[a-z][^\s/]*$/i.test(words)
        ? [`"${words}" has a line of its own`]
        : [];
    });
    return [...first, ...single].map((complaint) => `${path}:${line}: ${complaint}`);
  });
  const long = /\.(h|cc|cu|cuh)$/.test(path) ? (source.match(/^\s*\/\/.{99,}$/gm) ?? []) : [];
  return [...complaints, ...long.map((line) => `${path}: longer than 100: ${line.trim()}`)];
}

/** The folders of test/ that mirror no folder of the sources, as the table of test/README.md lists them. */
const kOtherTests = [
  ...(read('test/README.md').split('\n## ')[0] ?? '').matchAll(/^\| ((?:`\w+`(?:, )?)+) \|/gm),
].flatMap(([, names = '']) => [...names.matchAll(/`(\w+)`/g)].map(([, name = '']) => name));

/** The tests whose folder below test/ is none of the sources. Those of kernels are the CPU's, in the folder of the family alone. */
function misplaced(tests: readonly string[]): string[] {
  return tests.filter((path) => {
    const folder = dirname(path).replace(/^test\/?/, '');
    const sources = folder.startsWith('native')
      ? [folder, folder.replace('/kernels/', '/kernels/cpu/')]
      : [`lib/${folder}`];
    const [first = ''] = folder.split('/');
    return !sources.some((at) => existsSync(join(kRoot, at))) && !kOtherTests.includes(first);
  });
}

describe('test/', () => {
  const tests = filesBelow('test', /(\.test\.ts|_test\.cc)$/);

  it('mirrors lib/ and native/, except for the folders that its README lists', () => {
    expect(tests.length).toBeGreaterThan(200);
    expect(misplaced(tests)).toEqual([]);
    expect(misplaced(['test/linalg/a.test.ts', 'test/native/math/a_test.cc'])).toHaveLength(2);
  });

  it('has helpers only in test/support', () => {
    const helpers = filesBelow('test', /\.ts$/).filter(
      (path) => !path.endsWith('.test.ts') && !path.startsWith('test/support/'),
    );
    expect(helpers).toEqual([]);
  });
});

describe('layers', () => {
  it('C++ layers include only lower ones, and only binding uses Node, and only platform the system', () => {
    expect(nativeFiles.flatMap((path) => nativeComplaints(path, read(path)))).toEqual([]);
  });

  it('sources know a processor in folders of its own alone, and lists of implementations are all named', () => {
    expect(nativeFiles.flatMap((path) => processorComplaints(path, read(path)))).toEqual([]);
    const listed = read('native/kernels/cpu/implementations.def');
    expect(nativeFiles.flatMap((path) => listComplaints(path, read(path), listed))).toEqual([]);
  });

  it('the CUDA plug-in includes the kernel table and plain headers alone', () => {
    const complaints = cudaFiles.flatMap((path) =>
      [...read(path).matchAll(/#\s*include\s*"([^"]+)"/g)]
        .map((match) => match[1] ?? '')
        .filter((name) => /^(engine|tape|ops|io|binding|kernels\/cpu)\//.test(name))
        .map((name) => `${path}: ${name}`),
    );
    expect(complaints).toEqual([]);
  });

  it('headers that every device compiles include no device', () => {
    const allowed = /^(tensor|kernels\/shared|kernels\/operands)\/|^kernels\/kernel_table\.h$/;
    const shared = nativeFiles.filter((path) => path.startsWith('native/kernels/shared/'));
    const complaints = shared.flatMap((path) =>
      [...read(path).matchAll(/#\s*include\s*"([^"]+)"/g)]
        .map((match) => match[1] ?? '')
        .filter((name) => !allowed.test(name))
        .map((name) => `${path}: ${name}`),
    );
    expect(complaints).toEqual([]);
    expect(shared.length).toBeGreaterThan(0);
  });

  it('lib/io alone opens the files that users name', () => {
    expect(libFiles.flatMap((path) => openingComplaints(path, read(path)))).toEqual([]);
    for (const path of Object.keys(kOpeners))
      expect(openingComplaints('', read(path))).not.toEqual([]);
    const bad = "import { readFile, stat } from 'node:fs/promises';\nimport fs from 'node:fs';\n";
    expect(openingComplaints('lib/x.ts', bad)).toHaveLength(2);
    expect(openingComplaints('lib/x.ts', "import { existsSync } from 'node:fs';\n")).toEqual([]);
  });

  it('one file reads the environment, to which another thread may write', () => {
    const readers = [...nativeFiles, ...cudaFiles].filter((path) =>
      /\b(?:secure_)?getenv\b|\benviron\b/.test(read(path).replace(/\/\/.*$/gm, '')),
    );
    expect(readers).toEqual(['native/platform/environment.cc']);
  });

  it('sources of C++ and CUDA ask for the variables that are listed, each by its name, and for all of them', () => {
    const [, list = ''] = /kVariables = \{([^}]*)\}/.exec(read(kVariablesFile)) ?? [];
    const listed = Array.from(list.matchAll(/"(\w+)"/g), ([, name]) => name);
    const paths = [...nativeFiles, ...cudaFiles].filter(
      (path) => !path.startsWith('native/platform/environment.'),
    );
    const asked = paths.flatMap((path) => variablesAsked(read(path)));
    expect(listed.length).toBeGreaterThan(3);
    expect([...new Set(asked)].sort()).toEqual(listed.sort());
    expect(variablesAsked('f(variable("A"), variable_of(ctx, "B")); // variable(x)')).toEqual([
      'A',
      'B',
    ]);
    expect(variablesAsked('variable(name); variable_of(ctx, name)')).toEqual(['name', 'ctx, name']);
  });

  it('lib/shown.ts alone makes texts printable', () => {
    expect(libFiles.flatMap((path) => printableComplaints(path, read(path)))).toEqual([]);
    for (const path of Object.keys(kNamers))
      expect(printableComplaints('', read(path))).not.toEqual([]);
    const bad = [
      String.raw`text.replace(/[\p{Cc}\p{Cf}]/gu, ' ');`,
      String.raw`text.replace(/[\x00-\x1f]/g, '?');`,
      'function printable(text) {',
      'stripVTControlCharacters(text);',
    ];
    for (const line of bad) expect(printableComplaints('lib/x.ts', line)).toHaveLength(1);
    expect(printableComplaints('lib/x.ts', "// \\p{Cc}\noneLine('\\n');")).toEqual([]);
  });

  it('cuda/ has launches, shared memory and PTX in one file each', () => {
    expect(cudaFiles.flatMap((path) => cudaComplaints(path, read(path)))).toEqual([]);
    for (const [, pattern, file] of kCudaOnlyIn.filter(
      ([, p]) => !p.source.includes('LaunchKernel'),
    )) {
      expect(read(file)).toMatch(pattern); // the table is up to date
    }
  });

  it('each of these checks finds a violation', () => {
    const cpp = '#include "ops/ops.h"\n#include <napi.h>\n#include "view.h"\n#include <unistd.h>\n';
    expect(nativeComplaints('native/kernels/cpu/x.cc', cpp)).toHaveLength(4);
    expect(nativeComplaints('native/attic/x.cc', '')).toHaveLength(1);
    const x86 = '#include "kernels/cpu/norm/x86/norm.h"\n#if defined(__x86_64__)\n';
    expect(processorComplaints('native/kernels/cpu/norm/norm.cc', x86)).toHaveLength(2);
    expect(processorComplaints('native/kernels/cpu/norm/x86/norm.cc', x86)).toEqual([]);
    const list = 'constexpr Core<Draw*> kDraws[] = {\n};\nBALORA_IMPLEMENTATIONS(draw, kDraws)\n';
    expect(listComplaints('x.cc', list, 'LIST(draw)')).toEqual([]);
    expect(listComplaints('x.cc', list, 'LIST(drawn)')).toHaveLength(1);
    const cuda = [
      'f<<<1, 2>>>(x);',
      'cudaLaunchKernel(f);',
      'asm("exit;");',
      'extern __shared__ float x[];',
    ];
    for (const line of cuda) expect(cudaComplaints('cuda/x.cu', line)).toHaveLength(1);
    expect(cudaComplaints('cuda/x.cu', '// asm is not <<<allowed>>>\nsay("__shared__");')).toEqual(
      [],
    );
  });
});

describe('the linter', () => {
  const kBiome = join(kRoot, 'node_modules/@biomejs/biome/bin/biome');

  /** Files of the import cycles that the linter finds in a folder with these sources and the repository's configuration. */
  function circles(sources: Readonly<Record<string, string>>): string[] {
    const folder = mkdtempSync(join(tmpdir(), 'balora-circles-'));
    try {
      cpSync(join(kRoot, 'biome.json'), join(folder, 'biome.json'));
      for (const [name, text] of Object.entries(sources)) {
        mkdirSync(dirname(join(folder, name)), { recursive: true });
        writeFileSync(join(folder, name), text);
      }
      const args = [kBiome, 'lint', '--error-on-warnings', '--reporter=json'];
      const { stdout } = spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8' });
      const { diagnostics } = JSON.parse(stdout) as {
        diagnostics: { category: string; location: { path: string } }[];
      };
      return diagnostics
        .filter(({ category }) => category === 'lint/suspicious/noImportCycles')
        .map(({ location }) => location.path)
        .sort();
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  it('finds import cycles, also of types and re-exports, and none where there is none', () => {
    expect(
      circles({
        'lib/a.ts': "import type { B } from './b.ts';\nexport type A = B;\n",
        'lib/b.ts': "import type { A } from './c.ts';\nexport type B = A;\n",
        'lib/c.ts': "export type { A } from './a.ts';\n",
        'bench/d.mjs': "import { e } from './e.mjs';\nexport const d = () => e();\n",
        'bench/e.mjs': "import { d } from './d.mjs';\nexport const e = () => d();\n",
        'studies/f.mjs': "import { g } from './g.mjs';\nexport const f = () => g();\n",
        'studies/g.mjs': "export const g = () => import('./f.mjs');\n",
        'lib/h.ts': "import type { A } from './a.ts';\nexport type H = A;\n",
      }),
    ).toEqual([
      ...['bench/d.mjs', 'bench/e.mjs', 'lib/a.ts', 'lib/b.ts', 'lib/c.ts'],
      ...['studies/f.mjs', 'studies/g.mjs'],
    ]);
  });
});

describe('dependency-cruiser', () => {
  const kCruiser = join(kRoot, 'node_modules/dependency-cruiser/bin/dependency-cruise.mjs');

  /** `rule: from -> to` of each violation in a folder with these sources and the repository's configuration. */
  function violations(sources: Readonly<Record<string, string>>): string[] {
    const folder = mkdtempSync(join(tmpdir(), 'balora-layers-'));
    try {
      cpSync(join(kRoot, 'tsconfig.json'), join(folder, 'tsconfig.json'));
      const manifest = {
        dependencies: { zod: '4', commander: '14' },
        devDependencies: { vitest: '4' },
      };
      writeFileSync(join(folder, 'package.json'), JSON.stringify(manifest));
      for (const [name, text] of Object.entries(sources)) {
        mkdirSync(dirname(join(folder, name)), { recursive: true });
        writeFileSync(join(folder, name), text);
      }
      for (const name of ['zod', 'commander', 'vitest']) {
        const home = join(folder, 'node_modules', name);
        mkdirSync(home, { recursive: true });
        writeFileSync(join(home, 'package.json'), JSON.stringify({ name, main: 'index.js' }));
        writeFileSync(join(home, 'index.js'), '');
      }
      const config = join(kRoot, '.dependency-cruiser.mjs');
      const args = [kCruiser, '--config', config, '--output-type', 'json', 'lib', 'bench'];
      const { stdout } = spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8' });
      const { summary } = JSON.parse(stdout) as {
        summary: { violations: { rule: { name: string }; from: string; to: string }[] };
      };
      return summary.violations
        .map(({ rule, from, to }) => `${rule.name}: ${from} -> ${to}`)
        .sort();
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  it('finds imports of higher layers, of other folders, and of packages, also of types', () => {
    const empty = 'export type M = 1;\nexport const m = 1;\n';
    expect(
      violations({
        'lib/index.ts': "export * from './cli/x.ts';\n",
        'lib/tensor.ts': empty,
        'lib/graph.ts': "export * from './tensor.ts';\n",
        'lib/models/x.ts': "import { m } from '../graph.ts';\nimport 'zod';\nexport const x = m;\n",
        'lib/losses/x.ts': "import type { M } from '../models/x.ts';\nexport type X = M;\n",
        'lib/ops/x.ts': "export const x = () => import('../cli/x.ts');\n",
        'lib/attic/x.ts': "import '../tensor.ts';\n",
        'lib/cli/x.ts':
          "import 'commander';\nimport 'vitest';\nimport 'node:fs';\nimport '../../bench/harness/x.ts';\n",
        'bench/harness/x.ts':
          "import '../../lib/models/x.ts';\nimport '../../lib/index.ts';\nimport '../y.ts';\nimport 'zod';\n",
        'bench/y.ts': empty,
        'lib/data/x.ts': "import 'zod';\nimport '../../package.json';\n",
      }),
    ).toEqual([
      'every-file-has-a-layer: lib/attic/x.ts -> lib/tensor.ts',
      'harness-imports-lib: bench/harness/x.ts -> bench/y.ts',
      'harness-imports-lib: bench/harness/x.ts -> lib/index.ts',
      'lib-imports-lib: lib/cli/x.ts -> bench/harness/x.ts',
      'losses-imports-its-layers: lib/losses/x.ts -> lib/models/x.ts',
      'ops-imports-its-layers: lib/ops/x.ts -> lib/cli/x.ts',
      'packages-are-dependencies: lib/cli/x.ts -> node_modules/vitest/index.js',
      'packages-are-listed: lib/cli/x.ts -> node_modules/vitest/index.js',
      'zod-is-used-where-it-belongs: lib/data/x.ts -> node_modules/zod/index.js',
    ]);
  });
});

describe('style', () => {
  const sources = [...nativeFiles, ...cudaFiles, ...libFiles, ...harnessFiles].filter(
    (path) => path !== 'lib/native_ops.ts',
  );

  it('every file starts with a banner, except a source beside its header', () => {
    const bare = sources.filter((path) => !/^(#!.*\n)?\s*\/[/*]/.test(read(path)));
    const excused = (path: string): boolean =>
      path.endsWith('/index.ts') ||
      (path.endsWith('.cc') && nativeFiles.includes(path.replace(/\.cc$/, '.h'))) ||
      (path.endsWith('.cu') && cudaFiles.includes(`${path}h`));
    expect(bare.filter((path) => !excused(path))).toEqual([]);
  });

  it('comments begin with the thing, and no paragraph ends in a line of one word', () => {
    const others = [
      ...['native', 'device', 'emulator', 'fake_device'].flatMap((folder) =>
        filesBelow(`test/${folder}`, /\.(h|cc|cu)$/),
      ),
      ...filesBelow('scripts', /\.mjs$/),
      ...filesBelow('test', /\.ts$/),
    ];
    const all = [...sources, ...others];
    expect(all.flatMap((path) => commentComplaints(path, read(path)))).toEqual([]);
    const bad = [
      ...['// Of a row.', '/** What it is. */', '// x y\n// z.', '/**\n * x y\n * z.\n */'],
      ...[
        '// A row.\n// Of two.',
        '/**\n * A row.\n *\n * As two.\n */',
        '// ---- rows ----\n// With x.',
      ],
    ];
    for (const text of bad) expect(commentComplaints('x.ts', `${text}\n`), text).toHaveLength(1);
    const good = ['// A row of\n// (x/y.h).', '// Often\n//   x = y\n// as well', '// ---- What'];
    for (const text of good) expect(commentComplaints('x.cc', `${text}\n`), text).toEqual([]);
    expect(commentComplaints('x.cc', `// ${'x '.repeat(50)}`)).toHaveLength(1);
  });

  it('index files only re-export', () => {
    const code = libFiles
      .filter((path) => path.endsWith('/index.ts'))
      .map((path) => ({ path, text: read(path).replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '') }))
      .filter(({ text }) => text.replace(/export\s[^;]*?from\s*'[^']+';/g, '').trim() !== '');
    expect(code).toEqual([]);
  });

  it('file names are snake_case', () => {
    const odd = sources.filter((path) => !/^[a-z0-9_/]+(\.d)?\.[a-z]+$/.test(path));
    expect(odd).toEqual([]);
  });
});

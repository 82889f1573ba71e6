// Rules of the architecture and of style: which folder may import which, which code may use Node, a banner per file. Import
// cycles are found by biome's rule noImportCycles (biome.json) in the lint; a test here shows that it finds them. A new folder or
// a new exception is added here, with its reason, in the commit that needs it.
import { spawnSync } from 'node:child_process';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { isBuiltin } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join, normalize, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const kRoot = fileURLToPath(new URL('..', import.meta.url));

/** C++: the layers (folders of native/) that a layer may include beside itself. Lowest first. */
const kNativeLayers: Record<string, string[]> = {
  tensor: [],
  kernels: ['tensor'],
  engine: ['kernels', 'tensor'],
  tape: ['engine', 'kernels', 'tensor'],
  ops: ['tape', 'engine', 'kernels', 'tensor'],
  linalg: ['ops', 'tape', 'engine', 'kernels', 'tensor'],
  io: ['tensor'],
  binding: ['linalg', 'io', 'ops', 'tape', 'engine', 'kernels', 'tensor'],
};

/** Implementation files (never headers) that include a higher layer, and the reason. */
const kNativeExceptions: Record<string, string[]> = {
  // Tensor::empty asks the engine for memory and requires_grad asks the tape; tensor.h only declares both.
  'native/tensor/tensor.cc': ['engine', 'tape'],
  // Backward sums gradients with the ordinary add.
  'native/tape/tape.cc': ['ops'],
};

/** TypeScript: the layers (folders or files of lib/) that a layer may import beside itself. */
const kLibLayers: Record<string, string[]> = {
  errors: [],
  // A constant that data, ops, losses and the benchmark share.
  ignored_target: [],
  native: ['errors'],
  // Terms, adapters, the trainer and the command line declare their options with it.
  options: ['errors'],
  tensor: ['native', 'errors'],
  ops: ['tensor', 'native', 'errors'],
  io: ['tensor', 'native', 'errors'],
  nn: ['ops', 'tensor', 'errors'],
  text: ['io', 'errors'],
  data: ['text', 'ignored_target', 'errors'],
  models: ['nn', 'io', 'ops', 'tensor', 'errors'],
  adapters: ['models', 'nn', 'io', 'ops', 'tensor', 'options', 'errors'],
  losses: ['ops', 'tensor', 'ignored_target', 'options', 'errors'],
  optim: ['nn', 'ops', 'tensor', 'errors'],
  eval: ['losses', 'adapters', 'models', 'data', 'text', 'nn', 'io', 'ops', 'tensor', 'errors'],
  // The list of tasks, with the differences between language models, encoder-decoders and classifiers.
  tasks: [
    ...['eval', 'losses', 'adapters', 'models', 'data', 'text'],
    ...['nn', 'io', 'ops', 'tensor', 'options', 'errors'],
  ],
  train: [
    ...['tasks', 'eval', 'optim', 'losses', 'adapters', 'models', 'data', 'text'],
    ...['nn', 'io', 'ops', 'tensor', 'options', 'errors'],
  ],
  cli: [
    ...['train', 'tasks', 'eval', 'optim', 'losses', 'adapters', 'models', 'data', 'text'],
    ...['nn', 'io', 'ops', 'tensor', 'options', 'errors'],
  ],
};
/** Files at the top of lib/ that belong to a layer with another name. */
const kLibFiles: Record<string, string> = {
  'lib/native_ops.ts': 'native',
  'lib/autograd.ts': 'tensor',
  'lib/device.ts': 'tensor',
  'lib/gradcheck.ts': 'tensor',
  'lib/graph.ts': 'tensor',
  'lib/runtime.ts': 'tensor',
};
/**
 * bench/harness may import all layers of lib/, since it measures every part of a training run and is
 * called like the command line.
 */
const kHarness = 'bench/harness';

/** The layers that may use a package. */
const kPackages: Record<string, string[]> = {
  '@huggingface/tokenizers': ['text'],
  '@huggingface/jinja': ['text'],
  hyparquet: ['data'],
  commander: ['cli', 'bench'],
  yaml: ['cli'],
  zod: ['models', 'text', 'options', 'adapters', 'train', 'bench'],
};

function filesBelow(folder: string, ending: RegExp): string[] {
  return readdirSync(join(kRoot, folder), { recursive: true })
    .map((name) => `${folder}/${String(name)}`)
    .filter((name) => ending.test(name))
    .sort();
}
const read = (path: string): string => readFileSync(join(kRoot, path), 'utf8');
const nativeFiles = filesBelow('native', /\.(h|cc|def)$/);
const cudaFiles = filesBelow('cuda', /\.(cu|cuh|h|def)$/);
const libFiles = filesBelow('lib', /\.ts$/);
const harnessFiles = filesBelow(kHarness, /\.ts$/);

function libLayer(path: string): string {
  return kLibFiles[path] ?? path.split('/')[1]?.replace(/\.ts$/, '') ?? '';
}

/** The module specifiers in a TypeScript source, including those of types. */
function importsOf(source: string): string[] {
  const pattern = /(?:\bfrom\s*|\bimport\s*\(?\s*|\brequire\s*\(\s*)(['"])([^'"\n]+)\1/g;
  const code = source.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '');
  return [...code.matchAll(pattern)].map((match) => match[2] ?? '');
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
    } else if (head in kNativeLayers && !wanted.includes(head)) {
      complaints.push(`${path}: ${layer} may not include ${name}`);
    } else if (layer !== 'binding' && /^(napi|node_api|js_native_api|node|uv|v8)\b/.test(name)) {
      complaints.push(`${path}: only binding knows Node, found ${name}`);
    }
  }
  return complaints;
}

/** One complaint for each import of a file of lib/ that its layer does not allow. */
function libComplaints(path: string, source: string): string[] {
  const layer = libLayer(path);
  if (layer === 'index') return [];
  const allowed = kLibLayers[layer];
  if (!allowed) return [`${path}: lib/${layer} is not in the table of layers`];
  const complaints: string[] = [];
  for (const specifier of importsOf(source)) {
    if (specifier.startsWith('.')) {
      const target = normalize(join(dirname(path), specifier)).replace(/\.js$/, '.ts');
      if (target === 'package.json') continue;
      const other = libLayer(target);
      if (!target.startsWith('lib/')) {
        complaints.push(`${path}: lib may not import ${target}`);
      } else if (other !== layer && !allowed.includes(other)) {
        complaints.push(`${path}: ${layer} may not import ${relative('lib', target)}`);
      }
    } else {
      complaints.push(...packageComplaints(path, layer, specifier));
    }
  }
  return complaints;
}

/** A complaint where a layer may not use a package. */
function packageComplaints(path: string, layer: string, specifier: string): string[] {
  if (isBuiltin(specifier)) return [];
  const name = specifier.split('/', specifier.startsWith('@') ? 2 : 1).join('/');
  if (kPackages[name]?.includes(layer)) return [];
  return [`${path}: ${layer} may not use the package ${name}`];
}

/**
 * One complaint for each import in the harness from outside of itself and lib/, or of lib/index.ts, which would load the entire
 * library into the process whose start is measured.
 */
function harnessComplaints(path: string, source: string): string[] {
  return importsOf(source).flatMap((specifier) => {
    if (!specifier.startsWith('.')) return packageComplaints(path, 'bench', specifier);
    const target = normalize(join(dirname(path), specifier));
    const known = target.startsWith(`${kHarness}/`) || target.startsWith('lib/');
    if (known && target !== 'lib/index.ts') return [];
    return [`${path}: the harness may not import ${target}`];
  });
}

/** Constructs that only one file of cuda/ may contain, since the emulated device has to replace or watch them. */
const kCudaOnlyIn: [what: string, pattern: RegExp, file: string][] = [
  ['a launch', /<<</, 'cuda/common.cuh'],
  ['the launch of a driver or run-time call', /\bcu(da)?LaunchKernel\w*/, 'cuda/common.cuh'],
  ['PTX', /\basm\b|__asm__/, 'cuda/instructions.cuh'],
  ['__shared__', /__shared__/, 'cuda/block.cuh'],
];

/** One complaint for each of these constructs in another file. */
function cudaComplaints(path: string, source: string): string[] {
  const code = source.replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '').replace(/"(\\.|[^"\\\n])*"/g, '""');
  return kCudaOnlyIn
    .filter(([, pattern, file]) => file !== path && pattern.test(code))
    .map(([what, , file]) => `${path}: ${what} belongs to ${file}`);
}

describe('layers', () => {
  it('C++ layers include only lower ones, and only binding uses Node', () => {
    expect(nativeFiles.flatMap((path) => nativeComplaints(path, read(path)))).toEqual([]);
  });

  it('the CUDA plug-in includes the kernel table and plain headers alone', () => {
    const complaints = cudaFiles.flatMap((path) =>
      [...read(path).matchAll(/#\s*include\s*"([^"]+)"/g)]
        .map((match) => match[1] ?? '')
        .filter((name) => /^(engine|tape|ops|linalg|io|binding|kernels\/cpu)\//.test(name))
        .map((name) => `${path}: ${name}`),
    );
    expect(complaints).toEqual([]);
  });

  it('cuda/ has launches, shared memory and PTX in one file each', () => {
    expect(cudaFiles.flatMap((path) => cudaComplaints(path, read(path)))).toEqual([]);
    for (const [, pattern, file] of kCudaOnlyIn.filter(
      ([, p]) => !p.source.includes('LaunchKernel'),
    )) {
      expect(read(file)).toMatch(pattern); // the table is up to date
    }
  });

  it('TypeScript layers import only lower ones', () => {
    expect(libFiles.flatMap((path) => libComplaints(path, read(path)))).toEqual([]);
  });

  it('the benchmark imports only itself and lib/', () => {
    expect(harnessFiles.length).toBeGreaterThan(20);
    expect(harnessFiles.flatMap((path) => harnessComplaints(path, read(path)))).toEqual([]);
  });

  it('packages that lib/ uses are dependencies', () => {
    const manifest = JSON.parse(read('package.json')) as Record<string, Record<string, string>>;
    const declared = Object.keys({ ...manifest.dependencies, ...manifest.optionalDependencies });
    expect(Object.keys(kPackages).filter((name) => !declared.includes(name))).toEqual([]);
  });

  it('each of these checks finds a violation', () => {
    const cpp = '#include "ops/ops.h"\n#include <napi.h>\n#include "view.h"\n';
    expect(nativeComplaints('native/kernels/cpu/x.cc', cpp)).toHaveLength(3);
    expect(nativeComplaints('native/attic/x.cc', '')).toHaveLength(1);
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
    const ts =
      "import { a } from '../adapters/lora.ts';\nexport * from 'lodash';\nimport('../cli/x.js')";
    expect(libComplaints('lib/models/llama.ts', ts)).toHaveLength(3);
    expect(
      libComplaints('lib/losses/x.ts', "import type { M } from '../models/llama.ts'"),
    ).toHaveLength(1);
    expect(
      libComplaints('lib/cli/x.ts', "import { runBench } from '../../bench/harness/run.ts'"),
    ).toHaveLength(1);
    const harness = [
      "import '../../dist/index.js';",
      "import '../../lib/index.ts';",
      "import 'yaml';",
      "import { z } from 'zod';",
      "import './run.ts';",
    ];
    expect(harnessComplaints('bench/harness/x.ts', harness.join('\n'))).toHaveLength(3);
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

  it('every C++ source is in native/sources.txt, and nothing else', () => {
    const listed = read('native/sources.txt')
      .split('\n')
      .filter((line) => line.startsWith('native/'));
    const found = nativeFiles.filter((path) => path.endsWith('.cc'));
    expect([...new Set(listed)].sort()).toEqual(found);
  });
});

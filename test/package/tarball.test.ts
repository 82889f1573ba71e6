// The published package as a user gets it: it is packed and installed into an empty folder without install scripts. The README's
// first example runs there as an ES module and from CommonJS, and passes the type check.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { linksOf } from '../support/pages.ts';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));
const kPlatform = `${process.platform}-${process.arch}`;
const kRequiresEsm = process.features.require_module === true;

let folder = '';
let files: string[] = [];

function run(command: string, args: string[], cwd: string): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: 'utf8' });
  if (error) throw error;
  if (status !== 0) throw new Error(`${[command, ...args].join(' ')} failed:\n${stdout}${stderr}`);
  return stdout;
}

/** The folder of binaries in the installed package. */
const home = (): string => join(folder, 'node_modules', 'balora', 'prebuilds', kPlatform);

/** The first fenced block of the README. */
function readmeExample(): string {
  const block = /^```js\n([\s\S]*?)^```/m.exec(readFileSync(join(kRoot, 'README.md'), 'utf8'));
  if (!block?.[1]) throw new Error('README.md has no js example');
  return block[1];
}

/** Whether oneDNN is linked into the addon (BALORA_ONEDNN_ROOT with a libdnnl.a) instead of a library beside it. */
function staticOneDnn(): boolean {
  const cache = readFileSync(join(kRoot, 'build', 'release', 'CMakeCache.txt'), 'utf8');
  return /^ONEDNN_LIBRARY:\w+=.*\.a$/m.test(cache);
}

/** Runs a program in the empty folder, in an environment without variables of the repository. */
function runThere(name: string, source: string): string {
  writeFileSync(join(folder, name), source);
  const env = { PATH: process.env.PATH, HOME: process.env.HOME };
  return execFileSync(process.execPath, [name], { cwd: folder, encoding: 'utf8', env });
}

beforeAll(() => {
  run(process.execPath, ['scripts/prebuild.mjs'], kRoot);
  folder = mkdtempSync(join(tmpdir(), 'balora-package-'));
  const pack = ['pack', '--json', '--ignore-scripts', '--pack-destination', folder];
  const [packed] = JSON.parse(run('npm', pack, kRoot)) as [
    { filename: string; files: { path: string }[] },
  ];
  files = packed.files.map((file) => file.path);
  writeFileSync(join(folder, 'package.json'), '{ "name": "empty", "private": true }');
  const flags = ['--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund'];
  run('npm', ['install', ...flags, join(folder, packed.filename)], folder);
});

afterAll(() => {
  if (folder) rmSync(folder, { recursive: true, force: true });
});

describe('the packed tarball', () => {
  it('carries the built library, the binary with its libraries, and no source to build', () => {
    const expected = ['LICENSE', 'README.md', 'CHANGELOG.md', 'dist/index.js', 'dist/index.d.ts'];
    expect(files).toEqual(
      expect.arrayContaining([...expected, `prebuilds/${kPlatform}/balora.node`]),
    );
    const shared = files.some((path) => path.startsWith(`prebuilds/${kPlatform}/libdnnl.so.`));
    expect(shared).toBe(!staticOneDnn());
    expect(files.some((path) => path.startsWith(`prebuilds/${kPlatform}/libgomp.so.`))).toBe(true);
    expect(
      files.filter((path) =>
        /^(native|cuda|lib|bench|dist\/bench|studies|test|scripts)\/|binding\.gyp/.test(path),
      ),
    ).toEqual([]);
  });

  it('carries the licences of the libraries in it, also of a oneDNN in the addon', () => {
    const texts = files
      .filter((path) => /^prebuilds\/.*\.txt$/.test(path))
      .map((path) => basename(path));
    const own = ['libdnnl.LICENSE.txt', 'libdnnl.THIRD-PARTY-PROGRAMS.txt'];
    const packaged = texts.includes('libdnnl.copyright.txt'); // Debian's package of the shared library
    expect(texts).toEqual(
      expect.arrayContaining(packaged && !staticOneDnn() ? ['libdnnl.copyright.txt'] : own),
    );
    for (const name of texts) {
      const text = readFileSync(join(home(), name), 'utf8');
      expect(text.length).toBeGreaterThan(1000);
    }
  });

  it('contains every file that its pages link to', () => {
    const pages = files.filter((path) => path.endsWith('.md') && !path.startsWith('dist/'));
    const links = pages.flatMap(linksOf);
    expect(links.length).toBeGreaterThan(50);
    const carried = (path: string) =>
      files.some((file) => file === path || file.startsWith(`${path.replace(/\/$/, '')}/`));
    expect(links.filter((path) => !carried(path))).toEqual([]);
  });

  it("runs the README's example in an empty folder, twice", () => {
    for (let run = 0; run < 2; run++) {
      const lines = runThere('example.mjs', readmeExample()).trim().split('\n');
      const losses = lines.map((line) => Number(line.split(' ')[1]));
      expect(losses).toHaveLength(20);
      expect(losses.at(-1)).toBeLessThan(losses[0] as number);
      expect(existsSync(join(folder, 'adapter', 'adapter_model.safetensors'))).toBe(true);
    }
  });

  it('loads the binary and the libraries from the package', () => {
    const source = `import 'balora';
      import { readFileSync } from 'node:fs';
      const maps = readFileSync('/proc/self/maps', 'utf8').match(/\\S*(balora\\.node|libdnnl|libgomp)\\S*/g);
      console.log(JSON.stringify([...new Set(maps)]));`;
    const mapped = JSON.parse(runThere('maps.mjs', source)) as string[];
    expect(mapped).toHaveLength(staticOneDnn() ? 2 : 3);
    expect(mapped.filter((path) => !path.startsWith(home()))).toEqual([]);
  });

  it('uses a GPU, or reports what is missing for one', () => {
    const source = `import { zeros } from 'balora/ops';
      try { console.log('works', await zeros([1], { device: 'cuda' }).item()); }
      catch (error) { console.log(error.code, error.message); }`;
    const said = runThere('cuda.mjs', source).trim();
    const place = `prebuilds/${kPlatform}/balora_cuda.so`;
    const refusal = files.includes(place)
      ? /^ERR_UNSUPPORTED cuda:0: (no NVIDIA driver was found|the NVIDIA driver is for|no CUDA device was found|cuBLAS was not found|.* has compute capability)/
      : /^ERR_UNSUPPORTED device "cuda": its plug-in \S*\/balora_cuda\.so is not there /;
    if (said !== 'works 0') expect(said).toMatch(refusal);
    if (!files.includes(place)) expect(said).toContain(`node_modules/balora/${place}`);
  });

  it.skipIf(!kRequiresEsm)('can be required from CommonJS (needs a Node that requires ESM)', () => {
    const source = "console.log(typeof require('balora').tensor);";
    expect(runThere('example.cjs', source).trim()).toBe('function');
  });

  it('type-checks in a strict project without DOM types', () => {
    writeFileSync(join(folder, 'example.mts'), readmeExample());
    const types = ['--types', 'node', '--typeRoots', join(kRoot, 'node_modules', '@types')];
    const flags = ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2022'];
    const tsc = join(kRoot, 'node_modules', 'typescript', 'bin', 'tsc');
    run(process.execPath, [tsc, ...flags, ...types, 'example.mts'], folder);
  });

  it('has an executable that starts', () => {
    const bin = join(folder, 'node_modules', 'balora', 'dist', 'cli', 'main.js');
    expect(run(process.execPath, [bin, '--version'], folder)).toMatch(/^\d+\.\d+\.\d+/);
  });
});

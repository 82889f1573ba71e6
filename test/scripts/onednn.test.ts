// Which oneDNN a build takes, and the source archive of one that is built by hand.
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

interface Found {
  root: string;
  version: number[] | null;
  problem: string | null;
}
interface Module {
  parseOneDnnVersion(text: string): number[] | null;
  usable(version: number[]): boolean;
  findOneDnn(env: Record<string, string>): Found;
  oneDnnCache(env: Record<string, string>): string;
  oneDnnLicences(library: string): [string, string][];
  unusedSource(name: string): boolean;
}
interface Build {
  checkArchive(path: string, sha256: string): void;
  fetchSource(folder: string, archive: string | null): Promise<string>;
  mirrorOf(targets: string | null): string;
  cCompilerOf(command: string): string | null;
  removeUnused(source: string): void;
  progressOf(text: string): number | null;
}
// Scripts without types.
const path = '../../scripts/support/onednn.mjs';
const { parseOneDnnVersion, usable, findOneDnn, oneDnnCache, oneDnnLicences, unusedSource } =
  (await import(path)) as Module;
const buildPath = '../../scripts/support/build_onednn.mjs';
const { cCompilerOf, checkArchive, fetchSource, mirrorOf, progressOf, removeUnused } =
  (await import(buildPath)) as Build;

const header = (major: number, minor: number, patch: number): string =>
  `#define DNNL_VERSION_MAJOR ${major}\n#define DNNL_VERSION_MINOR ${minor}\n#define DNNL_VERSION_PATCH ${patch}\n`;

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-onednn-'));
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true, force: true });
});

function install(root: string, text: string): void {
  mkdirSync(join(root, 'include', 'oneapi', 'dnnl'), { recursive: true });
  writeFileSync(join(root, 'include', 'oneapi', 'dnnl', 'dnnl_version.h'), text);
}

describe('the version', () => {
  it('is read from the header', () => {
    expect(parseOneDnnVersion(header(2, 6, 3))).toEqual([2, 6, 3]);
    expect(parseOneDnnVersion('#define DNNL_VERSION_MAJOR 2\n')).toBeNull();
  });

  it.each([
    [[1, 8, 0], false],
    [[2, 4, 4], false],
    [[2, 5, 2], true],
    [[2, 6, 3], true],
    [[3, 0, 0], true],
  ])('%j is usable: %j', (version, is) => {
    expect(usable(version)).toBe(is);
  });
});

describe('BALORA_ONEDNN_ROOT', () => {
  it('is taken as it is', () => {
    install(folder, header(3, 2, 0));
    const env = { BALORA_ONEDNN_ROOT: folder };
    expect(findOneDnn(env)).toEqual({ root: folder, version: [3, 2, 0], problem: null });
  });

  it('is refused where it is too old or nothing', () => {
    const env = { BALORA_ONEDNN_ROOT: folder };
    expect(findOneDnn(env).problem).toMatch(/^BALORA_ONEDNN_ROOT: .*dnnl_version\.h is not there$/);
    install(folder, header(2, 4, 0));
    expect(findOneDnn(env).problem).toBe(`BALORA_ONEDNN_ROOT: ${folder} is 2.4.0`);
  });
});

it("keeps a build of its own in the user's cache, by version and flags", () => {
  expect(oneDnnCache({ XDG_CACHE_HOME: '/c' })).toMatch(
    /^\/c\/balora\/onednn-3\.7\.2-[0-9a-f]{8}$/,
  );
});

describe('the source archive', () => {
  it('is named where it is damaged', () => {
    const file = join(folder, 'onednn.tar.xz');
    writeFileSync(file, 'abc');
    const abc = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad';
    expect(() => checkArchive(file, abc)).not.toThrow();
    writeFileSync(file, 'ab');
    expect(() => checkArchive(file, abc)).toThrow(
      `${file} is damaged or not what it should be: 2 bytes with SHA-256 fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603, expected ${abc}.`,
    );
  });

  it("comes from the machine's own mirror of Debian", () => {
    expect(mirrorOf('http://mirror.example/debian\nhttp://mirror.example/debian-security')).toBe(
      'http://mirror.example/debian',
    );
    expect(mirrorOf('file:/srv/own/\nhttps://m.example/pub/debian/')).toBe(
      'https://m.example/pub/debian',
    );
    expect(mirrorOf('http://archive.example/ubuntu/')).toBe('http://deb.debian.org/debian');
    expect(mirrorOf(null)).toBe('http://deb.debian.org/debian');
  });
});

describe('fetching the source without apt', () => {
  const bin = (): string => join(folder, 'bin');
  /** A machine whose only program is this curl. */
  function onlyCurl(script: string): void {
    mkdirSync(bin(), { recursive: true });
    writeFileSync(join(bin(), 'curl'), `#!/bin/sh\n[ "$1" = --version ] && exit 0\n${script}\n`);
    chmodSync(join(bin(), 'curl'), 0o755);
    vi.stubEnv('PATH', bin());
  }

  it('says what the network said, and what to do by hand', async () => {
    onlyCurl('echo "curl: (6) Could not resolve host: github.com" >&2; exit 6');
    await expect(fetchSource(folder, null)).rejects.toThrow(
      /^oneDNN's source could not be had:\n[\s\S]*Could not resolve host: github\.com[\s\S]*Fetch https:\S*\.tar\.gz by hand and name it: npm run setup -- --build-onednn=oneDNN-/,
    );
  });

  it('names an archive that arrives damaged', async () => {
    onlyCurl('printf abc > "$5"');
    await expect(fetchSource(folder, null)).rejects.toThrow(
      /oneDNN-3\.7\.2\.tar\.gz is damaged or not what it should be: 3 bytes with SHA-256 ba7816bf/,
    );
  });

  it('says that there is no program to fetch with', async () => {
    vi.stubEnv('PATH', bin());
    await expect(fetchSource(folder, null)).rejects.toThrow(
      "neither apt-get with Debian's keys nor curl nor wget is here",
    );
  });

  it('takes an archive that was fetched by hand only where it is whole', async () => {
    const file = join(folder, 'onednn.tar.gz');
    writeFileSync(file, 'abc');
    await expect(fetchSource(folder, file)).rejects.toThrow(`${file} is damaged`);
  });
});

describe('the sources that are built', () => {
  it.each([
    'common/convolution.cpp',
    'cpu/ref_softmax.cpp',
    'cpu/simple_layer_normalization.cpp',
    'cpu/rnn/ref_rnn.cpp',
    'cpu/x64/jit_brgemm_conv_bwd_utils.cpp',
    'cpu/x64/jit_uni_pool_kernel.cpp',
    'cpu/x64/lrn/jit_uni_lrn.cpp',
  ])('leave out %s', (name) => expect(unusedSource(name)).toBe(true));

  it.each([
    'common/convolution_pd.cpp',
    'common/matmul.cpp',
    'cpu/cpu_convolution_list.cpp',
    'cpu/gemm_inner_product_utils.cpp',
    'cpu/ref_convolution.hpp',
    'cpu/x64/gemm/s8x8s32/jit_avx2_u8_copy_sum_an_kern_autogen.cpp',
    'cpu/x64/injectors/jit_uni_eltwise_injector.cpp',
    'cpu/x64/jit_gemm_inner_product_utils.cpp',
    'cpu/x64/matmul/brgemm_matmul.cpp',
    'cpu/aarch64/jit_uni_softmax.cpp',
  ])('have %s', (name) => expect(unusedSource(name)).toBe(false));

  it('are removed from the unpacked archive', () => {
    const cpu = join(folder, 'src', 'cpu', 'x64');
    mkdirSync(cpu, { recursive: true });
    for (const name of ['jit_uni_softmax.cpp', 'jit_uni_reorder.cpp'])
      writeFileSync(join(cpu, name), '');
    removeUnused(folder);
    expect(readdirSync(cpu)).toEqual(['jit_uni_reorder.cpp']);
  });
});

it('has a C compiler of the same make', () => {
  const all = ['c++', 'g++-12', '/opt/bin/clang++-19', 'nvc++'];
  expect(all.map(cCompilerOf)).toEqual(['cc', 'gcc-12', '/opt/bin/clang-19', null]);
});

describe('the licence of a oneDNN that goes into a package', () => {
  it('is what its install step puts beside it', () => {
    const doc = join(folder, 'share', 'doc', 'dnnl');
    mkdirSync(doc, { recursive: true });
    for (const name of ['LICENSE', 'THIRD-PARTY-PROGRAMS']) writeFileSync(join(doc, name), name);
    expect(oneDnnLicences(join(folder, 'lib', 'libdnnl.a'))).toEqual([
      ['libdnnl.LICENSE.txt', join(doc, 'LICENSE')],
      ['libdnnl.THIRD-PARTY-PROGRAMS.txt', join(doc, 'THIRD-PARTY-PROGRAMS')],
    ]);
  });

  it('is asked for where it is missing', () => {
    const library = join(folder, 'lib', 'libdnnl.a');
    const place = join(folder, 'share', 'doc', 'dnnl', 'LICENSE');
    expect(() => oneDnnLicences(library)).toThrow(
      `A package that carries ${library} must carry its licence: ${place} is not there.`,
    );
  });
});

it("reads ninja's and make's progress", () => {
  expect(progressOf('[1/200] a\n[50/200] b\n')).toBe(25);
  expect(progressOf('[  3%] a\n[ 47%] b\nnothing')).toBe(47);
  expect(progressOf('-- configuring')).toBeNull();
});

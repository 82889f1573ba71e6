// Requirements of the set-up on a machine: platforms, versions of Node, and the commands that install missing packages.
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

interface Need {
  id: string;
  what: string;
  problem: string;
  packages: Record<string, string[]>;
}
interface System {
  checkPlatform(machine?: { platform?: string; arch?: string; node?: string }): void;
  missingMessage(
    needs: Need[],
    machine?: { manager?: string | null; candidates?: Record<string, string> },
  ): string;
  ensureNeeds(ids: string[]): Promise<string>;
  ensureTools(ids: string[]): Promise<{ id: string; reason: string }[]>;
}
interface Needs {
  kBuildNeeds: string[];
  kDeveloperNeeds: string[];
  unmet(ids: string[]): Need[];
  versionOf(text: string | null): number[];
  atLeast(version: number[], least: number[]): boolean;
}
// The scripts have no types.
const script = (name: string) => import(`../../scripts/support/${name}.mjs`);
const { checkPlatform, missingMessage, ensureNeeds, ensureTools } = (await script(
  'system',
)) as System;
const { kBuildNeeds, kDeveloperNeeds, unmet, versionOf, atLeast } = (await script(
  'needs',
)) as Needs;

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
});

/** The output of the check of a platform. */
function said(machine: { platform: string; arch: string; node?: string }): string {
  const write = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
  checkPlatform({ node: '22.2.0', ...machine });
  return write.mock.calls.map(([text]) => String(text)).join('');
}

it('accepts linux-x64 without a message, and calls others untested', () => {
  expect(said({ platform: 'linux', arch: 'x64' })).toBe('');
  expect(said({ platform: 'linux', arch: 'arm64' })).toMatch(/linux-arm64 is untested/);
  expect(said({ platform: 'darwin', arch: 'arm64' })).toMatch(/darwin-arm64 is untested/);
});

it.each([
  [
    { platform: 'win32', arch: 'x64' },
    /^UnsupportedPlatform: .* this is win32-x64\. Use a machine/,
  ],
  [
    { platform: 'linux', arch: 'ia32' },
    /^UnsupportedPlatform: .* this is linux-ia32\. Use a machine/,
  ],
  [
    { node: '18.20.4' },
    /^balora needs Node 20\.17 or newer of Node 20, or Node >= 22\.2; this is Node 18\.20\.4\. Install a newer one/,
  ],
  [
    { node: '20.16.0' },
    /^balora needs Node 20\.17 or newer of Node 20, or Node >= 22\.2; this is Node 20\.16\.0\. Install a newer one/,
  ],
])('refuses %j by name', (machine, message) => {
  const check = () =>
    checkPlatform({ ...{ platform: 'linux', arch: 'x64', node: '22.2.0' }, ...machine });
  expect(check).toThrow(expect.objectContaining({ name: 'SetupError' }));
  expect(check).toThrow(message);
});

it('accepts the oldest Node that it names, which is that of package.json', () => {
  expect(said({ platform: 'linux', arch: 'x64', node: '20.17.0' })).toBe('');
  const { engines } = JSON.parse(readFileSync('package.json', 'utf8')) as { engines: object };
  expect(engines).toEqual({ node: '^20.17 || >=22.2' });
});

describe('the required packages', () => {
  it('are for a user only those of the build, without formatter, linter, test library or Python', () => {
    expect(kBuildNeeds).toEqual(['make', 'compiler', 'openmp', 'cmake', 'onednn', 'eigen']);
    expect(kDeveloperNeeds).toEqual(
      expect.arrayContaining(['doctest', 'clang-format', 'clang-tidy', 'python', 'node-headers']),
    );
  });
});

it('compares versions number by number', () => {
  expect(versionOf('cmake version 3.22.1\n\nCMake suite')).toEqual([3, 22, 1]);
  expect(versionOf(null)).toEqual([0]);
  expect(atLeast([3, 22, 1], [3, 22])).toBe(true);
  expect(atLeast([3, 9], [3, 22])).toBe(false);
  expect(atLeast([4], [3, 22])).toBe(true);
  expect(atLeast([0], [2, 5])).toBe(false);
});

describe('on a machine without any tools', () => {
  let folder = '';
  const program = (name: string, body: string) =>
    writeFileSync(join(folder, name), `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'balora-system-'));
    vi.stubEnv('PATH', folder); // there is no compiler and no sudo
    vi.stubEnv('CXX', '');
    vi.spyOn(process, 'getuid').mockReturnValue(1000);
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it('prints the complete command, by package manager', async () => {
    await expect(ensureNeeds(kBuildNeeds)).rejects.toThrow(
      /a C\+\+ compiler: there is none; balora needs g\+\+ 12 or newer, or clang 16 or newer.*as root:\n.*apt-get update.* g\+\+ cmake.*dnf install -y make gcc-c\+\+ cmake.*pacman -S.*apk add/s,
    );
    program('sudo', 'test "$1" = --version'); // this sudo asks for a password
    symlinkSync('/bin/true', join(folder, 'apt-get'));
    await expect(ensureNeeds(kBuildNeeds)).rejects.toThrow(
      /\n {2}sudo apt-get update && sudo apt-get install -y --no-install-recommends make g\+\+ cmake/,
    );
  });

  it('lists missing tools instead of failing', async () => {
    const [left, ...others] = await ensureTools(['clang-format']);
    expect(others).toEqual([]);
    expect(left?.id).toBe('clang-format');
    expect(left?.reason).toMatch(/^no clang-format 18: .*apt-get install .* clang-format-18/s);
  });
});

it('names a package of a compiler that the distribution has', () => {
  const needs = unmetOf('compiler');
  const candidates = { 'g++': '4:11.2.0-1ubuntu1', 'g++-12': '12.3.0-1ubuntu1' };
  expect(missingMessage(needs, { manager: 'apt', candidates })).toMatch(
    /apt-get install -y --no-install-recommends g\+\+-12$/,
  );
});

it('names packages that are too old in the distribution, instead of a command that would not help', () => {
  const candidates = { cmake: '3.18.4-2', 'libdnnl-dev': '1.8-1' };
  expect(missingMessage(unmetOf('cmake'), { manager: 'apt', candidates })).toMatch(
    /^.* has no package that is new enough for:\n {2}CMake 3\.22 or newer: there is none\nDebian 12 .*: use one of these/,
  );
});

it('asks for no tool that this process could not use', () => {
  const uid = vi.spyOn(process as Required<NodeJS.Process>, 'getuid').mockReturnValue(0);
  const isDebianLike = process.platform === 'linux' && process.arch === 'x64';
  expect(unmetOf('debootstrap').map(({ id }) => id)).toEqual(isDebianLike ? ['debootstrap'] : []);
  uid.mockReturnValue(1000);
  expect(unmetOf('debootstrap')).toEqual([]);
});

/** A need that is not met. */
function unmetOf(id: string): Need[] {
  vi.stubEnv('PATH', '/nowhere');
  vi.stubEnv('CXX', '');
  const needs = unmet([id]);
  vi.unstubAllEnvs();
  return needs;
}

// What the set-up says of a machine: which platforms and Nodes it takes, and the command that brings what is missing.
import { mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, it, vi } from 'vitest';

interface System {
  checkPlatform(
    groups: string[],
    machine?: { platform?: string; arch?: string; node?: string },
  ): void;
  missingNeeds(groups: string[]): { what: string; apt: string }[];
  ensureSystemPackages(groups: string[]): Promise<string>;
}
// A script without types.
const kSystem = new URL('../../scripts/support/system.mjs', import.meta.url).href;
const { checkPlatform, missingNeeds, ensureSystemPackages } = (await import(kSystem)) as System;

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
});

/** What it prints about a machine. */
function said(
  machine: { platform: string; arch: string; node?: string },
  groups = ['build', 'test'],
): string {
  const write = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
  checkPlatform(groups, { node: '22.1.0', ...machine });
  return write.mock.calls.map(([text]) => String(text)).join('');
}

it('takes linux-x64 in silence, and says of others that they are untested', () => {
  expect(said({ platform: 'linux', arch: 'x64' })).toBe('');
  expect(said({ platform: 'linux', arch: 'arm64' })).toMatch(/linux-arm64 is untested/);
  expect(said({ platform: 'darwin', arch: 'arm64' })).toMatch(/darwin-arm64 is untested/);
});

it.each([
  [{ platform: 'win32', arch: 'x64' }, /^UnsupportedPlatform: .* this is win32-x64\.$/],
  [{ platform: 'linux', arch: 'ia32' }, /^UnsupportedPlatform: .* this is linux-ia32\.$/],
  [{ node: '18.20.4' }, /^balora needs Node >= 20\.0, this is Node 18\.20\.4\.$/],
  [{ node: '20.16.0' }, /^balora's tests need Node >= 20\.17, this is Node 20\.16\.0\.$/],
])('refuses %j by name', (machine, message) => {
  const check = () =>
    checkPlatform(['build', 'test'], {
      ...{ platform: 'linux', arch: 'x64', node: '22.1.0' },
      ...machine,
    });
  expect(check).toThrow(expect.objectContaining({ name: 'SetupError' }));
  expect(check).toThrow(message);
});

it('takes the oldest Nodes it names, the package that of running alone', () => {
  expect(said({ platform: 'linux', arch: 'x64', node: '20.17.0' })).toBe('');
  expect(said({ platform: 'linux', arch: 'x64', node: '20.0.0' }, ['build'])).toBe('');
  const { engines } = JSON.parse(readFileSync('package.json', 'utf8')) as { engines: object };
  expect(engines).toEqual({ node: '>=20' });
});

it('says the whole command where packages are missing and apt would ask', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'balora-system-'));
  try {
    vi.stubEnv('PATH', folder); // no compiler, no sudo
    vi.spyOn(process, 'getuid').mockReturnValue(1000);
    const packages = missingNeeds(['build']).map(({ apt }) => apt);
    expect(packages).toEqual(expect.arrayContaining(['build-essential', 'python3', 'cmake']));
    const elsewhere = ensureSystemPackages(['build']);
    await expect(elsewhere).rejects.toThrow(/C\+\+ compiler .*your system's package manager/s);
    symlinkSync('/bin/true', join(folder, 'apt-get'));
    await expect(ensureSystemPackages(['build'])).rejects.toThrow(
      `\n  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages.join(' ')}`,
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
});

// Roots of Debian: who may make them, and how a command runs inside one.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

interface Call {
  program: string;
  args: string[];
  env: Record<string, string>;
}
interface Mount {
  from: string;
  to: string;
  writable?: boolean;
}
interface Module {
  rootProblem(machine: { platform?: string; arch?: string; uid?: number }): string | null;
  rootFor(
    make: () => Promise<string>,
    options: { problem: string | null; ci: boolean },
  ): Promise<{ folder: string | null; why: string | null }>;
  insideRoot(
    folder: string,
    command: string[],
    options?: { cwd?: string; mounts?: Mount[]; env?: Record<string, string> },
  ): Call;
}
// The scripts have no types.
const path = '../../scripts/support/debian_root.mjs';
const { insideRoot, rootFor, rootProblem } = (await import(path)) as Module;
const mount = '../../scripts/support/mount.mjs';
const { mayMount } = (await import(mount)) as { mayMount(): boolean };

describe('a root of Debian', () => {
  it('is made by root on linux-x64', () => {
    expect(rootProblem({ platform: 'linux', arch: 'x64', uid: 0 })).toBeNull();
    expect(rootProblem({ platform: 'linux', arch: 'x64', uid: 1000 })).toContain('run it as root');
    expect(rootProblem({ platform: 'linux', arch: 'arm64', uid: 0 })).toContain('linux-x64 only');
    expect(rootProblem({ platform: 'darwin', arch: 'x64', uid: 0 })).toContain('linux-x64 only');
  });
});

describe('a check that needs a root', () => {
  const fails = () => Promise.reject(new Error('no mirror'));

  it('has it where it can be made', async () => {
    for (const ci of [false, true]) {
      const found = await rootFor(() => Promise.resolve('/r'), { problem: null, ci });
      expect(found).toEqual({ folder: '/r', why: null });
    }
  });

  it('fails in continuous integration where root cannot make it, and is left out by hand', async () => {
    await expect(rootFor(fails, { problem: null, ci: true })).rejects.toThrow('no mirror');
    const { folder, why } = await rootFor(fails, { problem: null, ci: false });
    expect([folder, why]).toEqual([null, expect.stringContaining('no mirror')]);
  });

  it('is left out where this process may not make any', async () => {
    const make = vi.fn(fails);
    const found = await rootFor(make, { problem: 'not root', ci: true });
    expect(found).toEqual({ folder: null, why: 'not root' });
    expect(make).not.toHaveBeenCalled();
  });
});

describe('a command inside a root', () => {
  let folder = '';
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "balora it's a root-"));
    for (const name of ['shown', 'kept', 'place']) mkdirSync(join(folder, name));
    writeFileSync(join(folder, 'shown', 'file'), 'seen');
  });
  afterEach(() => {
    vi.unstubAllEnvs();
    rmSync(folder, { recursive: true, force: true });
  });

  it('has of this environment what the network takes, and the given variables', () => {
    vi.stubEnv('HTTPS_PROXY', 'http://proxy.example');
    vi.stubEnv('BALORA_BINARY', '/host/balora.node');
    const { env } = insideRoot('/r', ['true'], { env: { CI: 'true' } });
    expect(env).toMatchObject({ HTTPS_PROXY: 'http://proxy.example', CI: 'true', HOME: '/root' });
    expect(env).not.toHaveProperty('BALORA_BINARY');
  });

  // The root is this system itself, which has all that a root needs.
  it.skipIf(!mayMount())(
    'sees folders of this machine, and changes those alone that it may',
    () => {
      const at = (name: string): string => join(folder, 'place', name);
      const mounts = [
        { from: join(folder, 'shown'), to: at('read') },
        { from: join(folder, 'kept'), to: at('write'), writable: true },
      ];
      const script =
        'cat read/file; echo "$1"; echo new > write/file; echo no > read/other; echo $?';
      const { program, args, env } = insideRoot('/', ['sh', '-c', script, 'sh', "it's $HOME"], {
        ...{ cwd: join(folder, 'place'), mounts },
      });
      const { stdout, stderr, status } = spawnSync(program, args, { env, encoding: 'utf8' });
      expect([status, stdout]).toEqual([0, "seenit's $HOME\n2\n"]);
      expect(stderr).toMatch(/read-only/i);
      expect(readFileSync(join(folder, 'kept', 'file'), 'utf8')).toBe('new\n');
      expect(existsSync(join(folder, 'shown', 'other'))).toBe(false);
      // The mounts end with the command.
      expect(existsSync(at('read/file'))).toBe(false);
    },
  );
});

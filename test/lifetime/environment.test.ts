// The environment of a process that imports the library: it stays as it is, though libgomp reads how its threads wait from it, and is
// read at the import alone, on the thread that may write to it.
import { describe, expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';
import { kFakePlugin, kNoFake } from '../support/fake_device.ts';

/**
 * Runs a program that imports the library, with nothing said on how threads wait but what is given.
 * @returns its variables before and after the import, those of a child, and libgomp's settings as it prints them when it is loaded
 */
async function imported(env: Record<string, string> = {}) {
  const result = await runProgram('test/lifetime/programs/environment.mjs', {
    env: { OMP_DISPLAY_ENV: 'verbose', ...env },
    without: ['OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'BALORA_OMP'],
  });
  expect(result, result.stderr).toMatchObject({ code: 0, signal: null, stopped: null });
  const setting = (name: string) =>
    new RegExp(`\\b${name} = '([^']*)'`).exec(result.stderr)?.[1]?.toLowerCase();
  return {
    ...(JSON.parse(result.stdout) as Record<'before' | 'after' | 'child', NodeJS.ProcessEnv>),
    spins: setting('GOMP_SPINCOUNT'),
    policy: setting('OMP_WAIT_POLICY'),
  };
}

describe.skipIf(process.platform !== 'linux')('after the import of the library', () => {
  it('the environment is what it was, a child inherits nothing, and idle threads sleep soon', async () => {
    const { before, after, child, spins, policy } = await imported();
    expect(before).not.toHaveProperty('OMP_WAIT_POLICY');
    expect(after).toEqual(before);
    expect(child).toEqual(before);
    expect({ spins, policy }).toEqual({ spins: '10000', policy: 'passive' });
  });

  it("BALORA_OMP=off leaves libgomp's defaults", async () => {
    const { before, after, child, spins } = await imported({ BALORA_OMP: 'off' });
    expect(after).toEqual(before);
    expect(child).toEqual(before);
    expect(Number(spins)).toBeGreaterThan(10_000);
  });

  it("a policy of the user's own stays", async () => {
    const { after, child, spins, policy } = await imported({ OMP_WAIT_POLICY: 'active' });
    expect(after).toMatchObject({ OMP_WAIT_POLICY: 'active' });
    expect(after).not.toHaveProperty('GOMP_SPINCOUNT');
    expect(child).toEqual(after);
    expect(policy).toBe('active');
    expect(Number(spins)).toBeGreaterThan(10_000);
  });

  it("a spin count of the user's own stays", async () => {
    const { before, after, child, spins } = await imported({ GOMP_SPINCOUNT: '77' });
    expect(after).toEqual(before);
    expect(child).toEqual(before);
    expect(spins).toBe('77');
  });
});

describe('a variable that is set after the import is read by nobody', () => {
  const late = async (args: string[] = [], env: Record<string, string> = {}) => {
    const program = 'test/lifetime/programs/late_environment.mjs';
    const { code, stdout, stderr } = await runProgram(program, { args, env });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    return stdout;
  };

  it('not by oneDNN', async () => {
    expect(await late()).toBe('64\n');
  });

  it.skipIf(kNoFake !== null)('and not by a device that is opened later', async () => {
    const plugin = { BALORA_CUDA_PLUGIN: kFakePlugin };
    expect(await late(['cuda'], plugin)).toBe('64\ntrue\n');
    expect(await late(['cuda'], { ...plugin, BALORA_EXACT_BLOCKS: '1' })).toBe('64\nfalse\n');
  });
});

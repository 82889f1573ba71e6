// A process or a worker that ends in the middle of work ends soon, with its own status and without a crash, also with the fake
// device, where two engines of a process wait for each other's copies.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { type ChildResult, runProgram } from '../support/child.ts';

const kProgram = 'test/lifetime/programs/ending.mjs';

const kFake = fileURLToPath(new URL('../../build/release/balora_fake.so', import.meta.url));
const kEveryDevice: { device: string; env: Record<string, string> }[] = [
  { device: 'cpu', env: {} },
  { device: 'cuda', env: { BALORA_TEST_DEVICE: 'cuda', BALORA_CUDA_PLUGIN: kFake } },
];
const kDevices = kEveryDevice.filter(({ device }) => device === 'cpu' || existsSync(kFake));

describe.each(kDevices)('ending in the middle of work on $device', ({ env }) => {
  const end = (name: string, more: Parameters<typeof runProgram>[1] = {}): Promise<ChildResult> =>
    runProgram(kProgram, { args: [name], env, ...more });

  it.each([
    ['natural', 0],
    ['process.exit', 7],
    ['exit-in-await', 7],
    ['exit-with-busy-worker', 7],
    ['exit-in-callback', 7],
  ])('%s: status %i', async (name, code) => {
    expect(await end(name)).toMatchObject({ code, signal: null, stopped: null, stderr: '' });
  });

  it.each(['throw', 'throw-in-timer', 'throw-in-callback', 'rejection'])(
    '%s: status 1 and the message',
    async (name) => {
      const result = await end(name);
      expect(result).toMatchObject({ code: 1, signal: null, stopped: null });
      expect(result.stderr).toContain('on purpose');
    },
  );

  it('process.abort: SIGABRT', async () => {
    expect(await end('abort')).toMatchObject({ signal: 'SIGABRT', stopped: null });
  });

  it.each(['SIGTERM', 'SIGINT', 'SIGKILL'] as const)('%s from outside', async (signal) => {
    const result = await end('signal', { onLine: (_, kill) => kill(signal) });
    expect(result).toMatchObject({ signal, stopped: null, stderr: '' });
  });

  it('worker.terminate, five times', async () => {
    const result = await end('worker-terminate');
    expect(result).toMatchObject({ code: 0, signal: null, stopped: null, stderr: '' });
    expect(result.stdout).toContain('terminated 4');
  });

  it('worker.terminate during calls of the addon, thirty times', async () => {
    const result = await end('worker-terminate-calling');
    expect(result).toMatchObject({ code: 0, signal: null, stopped: null, stderr: '' });
    expect(result.stdout).toBe('terminated\n');
  });

  it.each([
    ['before-exit', 'true\ntrue\ntrue\n'],
    ['script-timeout', 'timed out\n'],
    ['worker-terminate-opening', 'still mapped: 0\n'],
    ['worker-out-of-memory', 'ERR_WORKER_OUT_OF_MEMORY\n'.repeat(3)],
  ])('%s: status 0', async (name, stdout) => {
    expect(await end(name)).toMatchObject({
      code: 0,
      signal: null,
      stopped: null,
      stderr: '',
      stdout,
    });
  });

  it('process.exit in a worker', async () => {
    const result = await end('worker-exit');
    expect(result).toMatchObject({ code: 0, signal: null, stopped: null, stderr: '' });
    expect(result.stdout).toBe('worker exited with 5\n');
  });

  it('an uncaught throw in a worker', async () => {
    const result = await end('worker-throw');
    expect(result).toMatchObject({ code: 0, signal: null, stopped: null, stderr: '' });
    expect(result.stdout).toBe('worker failed: thrown on purpose\n');
  });
});

describe('runProgram', () => {
  it('distinguishes a hang from a slow run', async () => {
    const hung = await runProgram('-e', { args: ['setInterval(() => {}, 1e6)'], hangMs: 1500 });
    expect(hung).toMatchObject({ stopped: 'hang', signal: 'SIGKILL' });
    const slow = await runProgram('-e', { args: ['for (;;);'], hangMs: 1500, limitMs: 4000 });
    expect(slow).toMatchObject({ stopped: 'slow', signal: 'SIGKILL' });
  });
});

// The commands in the README, run in a clone.
import { execFile } from 'node:child_process';
import { statSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));

it('the command is executable after a build, which npx does not repair after its first run', () => {
  expect(statSync(`${kRoot}dist/cli/main.js`).mode & 0o111).toBe(0o111);
});

it('npx finds balora in its own clone, without a registry', async () => {
  const run = (...args: string[]) =>
    promisify(execFile)('npx', ['--no-install', 'balora', ...args], {
      cwd: kRoot,
      env: { ...process.env, npm_config_offline: 'true' },
    });
  const { stdout } = await run('--help');
  expect(stdout).toMatch(/^Usage: balora /);
  for (const command of ['train', 'evaluate', 'inspect', 'merge']) {
    expect(stdout).toMatch(new RegExp(`^ {2}${command} `, 'm'));
  }
  await expect(run('tarin')).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/unknown command "tarin" .did you mean "train"/),
  });
});

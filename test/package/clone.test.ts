// The commands that the README shows, as a clone runs them.
import { execFile } from 'node:child_process';
import { statSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));

it('the command can be executed as it was built, where npx has known the clone before', () => {
  expect(statSync(`${kRoot}dist/cli/main.js`).mode & 0o111).toBe(0o111);
});

it('npx finds balora in its own clone, without a registry', async () => {
  const run = (...args: string[]) =>
    promisify(execFile)('npx', ['--no-install', 'balora', ...args], {
      cwd: kRoot,
      env: { ...process.env, npm_config_offline: 'true' },
      timeout: 100_000,
    });
  const { stdout } = await run('--help');
  expect(stdout).toMatch(/^Usage: balora /);
  for (const command of ['train', 'evaluate', 'inspect', 'merge']) {
    expect(stdout).toMatch(new RegExp(`^ {2}${command} `, 'm'));
  }
  await expect(run('tarin')).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/unknown command 'tarin'[\s\S]*train/),
  });
}, 240_000);

// The messages for npm's failures: network, disk, and others.
import { expect, it } from 'vitest';

// The script has no types.
const path = '../../scripts/support/build_steps.mjs';
const { npmTrouble } = (await import(path)) as { npmTrouble(log: string): string | null };

it.each([
  [
    'npm error code ENOTFOUND\nnpm error network request to https://r/x failed, reason: getaddrinfo ENOTFOUND r\n',
    /^npm could not fetch the Node packages:\n {2}npm error network request to .*\nIs there a network\? .* run this again\.$/,
  ],
  ['npm ERR! code ECONNREFUSED\n', /^npm could not fetch .*\n {2}npm ERR! code ECONNREFUSED\n/],
  ['npm error code ENOSPC\n', /^npm ci: the disk is full\. Free space and run this again\.$/],
])('explains %j', (log, message) => {
  expect(npmTrouble(log)).toMatch(message);
});

it('does not explain other failures', () => {
  expect(npmTrouble('npm error code EINTEGRITY\nhttp fetch GET 200 ETIMEDOUT.tgz\n')).toBeNull();
});

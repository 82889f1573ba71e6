// The releases of Node that the tests run on: in continuous integration the suite `unit` takes one of them by turns, in the place of the
// installed one.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { unpack } from './debian_root.mjs';
import { withLock } from './lock.mjs';
import { cacheFolder } from './onednn.mjs';
import { runLogged, say } from './shell.mjs';
import { commitNumber, turnOf } from './turns.mjs';
import { makeWhole } from './whole.mjs';

/** A release of each line of Node that the library supports, oldest first. */
export const kNodes = ['20.20.2', '22.23.5', '24.22.3', '26.12.1'];

/** The release whose turn it is at this commit; the installed one outside of continuous integration. */
export const nodeNow = ({ env = process.env, number = commitNumber() } = {}) =>
  env.CI === 'true' ? turnOf(kNodes, number, 1)[0] : process.versions.node;

/** The program of a release: the installed one where it is that, else one of npm's registry, kept in the user's cache. */
export async function ensureNode(version) {
  if (version === process.versions.node) return process.execPath;
  const folder = join(cacheFolder(), `node-${version}`);
  const program = join(folder, 'bin', 'node');
  if (existsSync(program)) return program;
  return withLock(`${folder}.lock`, async () => {
    if (!existsSync(program)) {
      say(`      Node ${version} is fetched from npm's registry, once`);
      const run = (...command) => runLogged(`node-${version}`, ...command);
      const name = `node-${process.platform}-${process.arch}@${version}`;
      await makeWhole(folder, 'node', (part) => unpack(run, name, join(part, 'node')));
    }
    return program;
  });
}

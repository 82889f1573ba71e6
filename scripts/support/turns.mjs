// The turns of the platform checks: in continuous integration a run has only some of them, chosen by the commit, so that more platforms
// do not make it longer. Over a few commits all of them run.
import { spawnSync } from 'node:child_process';
import { root } from './shell.mjs';

/** How many platform checks a run has at most; of fewer than twice as many it has half. */
export const kTurnSize = 2;

/**
 * The number of a checkout's commit, from which the turn follows: the count of commits up to it. In a shallow clone, where that count
 * is of what was fetched, it is taken from the commit's hash, which is as good as drawn by lot; null where there is no commit.
 */
export function commitNumber(folder = root) {
  const git = (...args) => {
    const { status, stdout } = spawnSync('git', ['-C', folder, ...args], { encoding: 'utf8' });
    return status === 0 ? stdout.trim() : null;
  };
  const commit = git('rev-parse', 'HEAD');
  if (commit === null) return null;
  const shallow = git('rev-parse', '--is-shallow-repository') !== 'false';
  return shallow
    ? Number.parseInt(commit.slice(0, 12), 16)
    : Number(git('rev-list', '--count', 'HEAD'));
}

/**
 * The names whose turn it is: half of them, `most` at most, that follow each other in a circle, where the next number begins after the
 * last of them.
 * @param names all of them, in a fixed order
 * @param number from {@link commitNumber}; null: all of them
 */
export function turnOf(names, number, most = kTurnSize) {
  if (number === null) return [...names];
  const size = Math.min(most, Math.ceil(names.length / 2));
  const first = (number * size) % names.length;
  const chosen = Array.from({ length: size }, (_, i) => names[(first + i) % names.length]);
  return names.filter((name) => chosen.includes(name));
}

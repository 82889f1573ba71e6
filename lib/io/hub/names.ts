/** The form of names that a user or a server gives, checked before any of them becomes part of a path or a URL. */

import { existsSync } from 'node:fs';
import { isPrintable } from '../../shown.ts';

/** Owner or name in an id: the Hub's own rules, which keep ids and folders of the cache one to one. */
const kIdPart = /^\w(?:[\w.-]{0,94}\w)?$/;
/** Characters and endings that git allows in no name of a branch or a tag. */
const kNoRevision = /[ ~^:?*[]|@\{|\.$|\.lock$/;
const kLongestPath = 1024; // bytes
const kLongestSegment = 255; // bytes, of most file systems

/** Whether `text` is an id on the Hub, `owner/name`. */
export function isRepoId(text: string): boolean {
  const parts = text.split('/');
  return (
    parts.length === 2 && parts.every((part) => kIdPart.test(part)) && !/--|\.\.|\.git$/.test(text)
  );
}

/** A snapshot in the Hub's cache, as huggingface_hub lays it out. */
const kSnapshot = /(?:^|[/\\])models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]/;

/** The id on the Hub that a model's name or path stands for: the id itself, or that of a snapshot in the cache; null: none is known. */
export function hubIdOf(nameOrPath: string): string | null {
  const [, owner, name] = kSnapshot.exec(nameOrPath) ?? [];
  const id = owner === undefined ? nameOrPath : `${owner}/${name}`;
  return isRepoId(id) && !existsSync(id) ? id : null;
}

/** The folder of the repository that a snapshot in the Hub's cache is of, by the snapshot's path; null: it is that of no snapshot. */
export function repositoryOf(folder: string): string | null {
  const found = kSnapshot.exec(folder);
  if (found === null) return null;
  const end = found.index + found[0].length;
  return folder.slice(0, end).replace(/[/\\]snapshots[/\\]$/, '');
}

/** Whether a value is a commit as git names it: 40 lower-case hex digits. */
export function isCommit(value: unknown): value is string {
  return typeof value === 'string' && /^[0-9a-f]{40}$/.test(value);
}

/** Whether a text may be a branch, a tag or a commit, and stays below `refs` as a path. */
export function isRevision(text: string): boolean {
  return pathProblem(text) === null && !kNoRevision.test(text);
}

/**
 * The reason why `path` cannot be a file below a folder, or null where it can: relative, of plain segments, with no way up on
 * POSIX or on Windows.
 */
export function pathProblem(path: string): string | null {
  if (path === '') return 'it is empty';
  if (Buffer.byteLength(path) > kLongestPath) return `it is longer than ${kLongestPath} bytes`;
  // Two names that look alike could differ by them.
  if (!isPrintable(path)) return 'it holds invisible characters';
  if (path.includes('\\')) return 'it holds a backslash';
  for (const segment of path.split('/')) {
    if (segment === '') return 'a part of it is empty';
    if (segment === '.' || segment === '..') return `"${segment}" is a part of it`;
    if (/^[a-z]:/i.test(segment)) return 'it names a drive';
    if (Buffer.byteLength(segment) > kLongestSegment) {
      return `a part of it is longer than ${kLongestSegment} bytes`;
    }
  }
  return null;
}

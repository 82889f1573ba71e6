/** The teacher cache of a run: a file of its own, or one that runs share and of which one at a time appends. */
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { refusalOf, writeRefusal } from '../io/files.ts';
import { acquireLock, type FolderLock } from '../io/folder_lock.ts';
import { kTeacherCacheName, type TeacherCachePlace } from '../tasks/teacher_cache.ts';
import type { OutputFolder } from './output.ts';
import { type ResolvedRun, teacherCacheOption } from './resolve_run.ts';

export interface ClaimedCache {
  readonly place: TeacherCachePlace;
  /** Why this run only reads a file that runs share, behind its path; null where it appends to it. */
  readonly readOnly: string | null;
  release(): Promise<void>;
}

/**
 * Claims the file of a run's teacher cache; null for a run without one.
 * @param folder the run's output folder; null where it has none, and its own cache is a temporary file
 */
export async function claimTeacherCache(
  options: ResolvedRun,
  folder: OutputFolder | null,
): Promise<ClaimedCache | null> {
  const { teacherCache } = options.resources;
  if (teacherCacheOption(options) === null) return null;
  if (teacherCache === null) {
    const path = folder === null ? null : join(folder.run, kTeacherCacheName);
    return { place: { path }, readOnly: null, release: async () => {} };
  }
  const path = resolve(teacherCache);
  const { lock, readOnly } = await claim(path);
  return {
    place: { path, shared: { appends: lock !== null } },
    readOnly,
    release: async () => lock?.release(),
  };
}

/**
 * Acquires the lock of a file, or finds out why the file is only read. A file that exists is read without the lock where this user may
 * not write it or its lock: readers change nothing, and see whole records alone.
 */
async function claim(path: string): Promise<{ lock: FolderLock | null; readOnly: string | null }> {
  const refused = await writeRefusal(path);
  if (refused !== null) return { lock: null, readOnly: `this cache cannot be written: ${refused}` };
  let writer: string | null = null;
  const held = new Error('held');
  try {
    const lock = await acquireLock(`${path}.lock`, ({ pid, host }) => {
      writer = `process ${pid} on ${host} appends to this cache of the teacher`;
      return held;
    });
    return { lock, readOnly: null };
  } catch (error) {
    if (error === held) return { lock: null, readOnly: writer };
    const reason = refusalOf(error);
    if (reason === null || !existsSync(path)) throw error;
    return { lock: null, readOnly: `the lock of this cache cannot be written: ${reason}` };
  }
}

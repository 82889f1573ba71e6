/** The teacher cache of a run: a file of its own, or one that runs share and of which one at a time appends. */
import { join, resolve } from 'node:path';
import { kTeacherCacheName, type TeacherCachePlace } from '../tasks/teacher_cache.ts';
import { acquireLock, type FolderLock, type LockHolder } from './folder_lock.ts';
import { type ResolvedOptions, teacherCacheOption } from './options.ts';
import type { OutputFolder } from './output.ts';

export interface ClaimedCache {
  readonly place: TeacherCachePlace;
  /** The run that appends to the file instead of this one; null where this one does. */
  readonly writer: LockHolder | null;
  release(): Promise<void>;
}

/**
 * Claims the file of a run's teacher cache; null for a run without one.
 * @param folder the run's output folder; null where it has none, and its own cache is a temporary file
 */
export async function claimTeacherCache(
  options: ResolvedOptions,
  folder: OutputFolder | null,
): Promise<ClaimedCache | null> {
  const { teacherCache } = options.resources;
  if (teacherCacheOption(options) === null) return null;
  if (teacherCache === null) {
    const path = folder === null ? null : join(folder.run, kTeacherCacheName);
    return { place: { path }, writer: null, release: async () => {} };
  }
  const path = resolve(teacherCache);
  const { lock, writer } = await claim(`${path}.lock`);
  return {
    place: { path, shared: { appends: lock !== null } },
    writer,
    release: async () => lock?.release(),
  };
}

/** Acquires a lock, or finds who has it. */
async function claim(
  path: string,
): Promise<{ lock: FolderLock | null; writer: LockHolder | null }> {
  let writer: LockHolder | null = null;
  const held = new Error('held');
  try {
    const lock = await acquireLock(path, (holder) => {
      writer = holder;
      return held;
    });
    return { lock, writer: null };
  } catch (error) {
    if (error === held) return { lock: null, writer };
    throw error;
  }
}

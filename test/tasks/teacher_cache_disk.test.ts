// A shared cache of the teacher on a disk that fills up: the run ends with a named error, and the next one continues the file.
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { TeacherCache } from '../../lib/tasks/teacher_cache.ts';
import { tensor } from '../../lib/tensor.ts';

const disk = vi.hoisted(() => ({ free: Number.POSITIVE_INFINITY }));

vi.mock('node:fs', async (original) => {
  const fs = await original<typeof import('node:fs')>();
  const writeSync = (file: number, bytes: Buffer, from: number, length: number, at: number) => {
    const taken = Math.min(length, disk.free);
    if (taken === 0) throw Object.assign(new Error('full'), { code: 'ENOSPC' });
    disk.free -= taken;
    return fs.writeSync(file, bytes, from, taken, at);
  };
  return { ...fs, writeSync };
});

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-cache-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const kKind = { model: 'm', dtype: 'f32', channels: 3, vocabulary: 17, temperature: 2 };

/** Adds one sequence of two rows whose numbers are all `id`. */
async function add(cache: TeacherCache, id: number): Promise<void> {
  const sequences = [{ ids: Int32Array.of(id, id), begin: 0, end: 2 }];
  const mean = tensor(new Float32Array(6).fill(id), { shape: [2, 3] });
  const entropy = tensor(new Float64Array(2).fill(id), { shape: [2] });
  const selected = { rows: Int32Array.of(0, 1) } as Parameters<TeacherCache['add']>[1];
  await cache.add(sequences, selected, { mean, entropy });
}

it('ends the run that fills the disk by name, and loses no complete record', async () => {
  const place = { path: join(folder, 'teacher.cache'), shared: { appends: true } };
  const cache = new TeacherCache(place, kKind);
  await add(cache, 1);
  disk.free = 20;
  await expect(add(cache, 2)).rejects.toMatchObject({
    code: 'ERR_DISK_FULL',
    message: expect.stringMatching(/teacher\.cache: cannot write: no space left on the disk/),
  });
  cache.close();
  disk.free = Number.POSITIVE_INFINITY;
  const next = new TeacherCache(place, kKind);
  expect(next.size).toBe(1);
  await add(next, 2);
  next.close();
  const size = statSync(place.path).size;
  const last = new TeacherCache(place, kKind);
  expect(last.size).toBe(2);
  expect(statSync(place.path).size).toBe(size);
  last.close();
});

it('continues a file in which the disk had no room for the whole head', async () => {
  const place = { path: join(folder, 'teacher.cache'), shared: { appends: true } };
  disk.free = 20;
  expect(() => new TeacherCache(place, kKind)).toThrow(/teacher\.cache: cannot write: no space/);
  expect(statSync(place.path).size).toBe(20);
  disk.free = Number.POSITIVE_INFINITY;
  new TeacherCache({ ...place, shared: { appends: false } }, kKind).close();
  const next = new TeacherCache(place, kKind);
  await add(next, 1);
  next.close();
  const last = new TeacherCache(place, kKind);
  expect(last.size).toBe(1);
  last.close();
});

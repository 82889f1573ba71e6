import { spawnSync } from 'node:child_process';
import crypto from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { hostname, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ArgumentError, NativeError } from '../../lib/errors.ts';
import { namesIn, writeFileAtomic, writeFolderAtomic } from '../../lib/io/files.ts';
import { COMPANIONS } from '../../lib/io/model_folder.ts';
import { openMetrics } from '../../lib/train/metrics.ts';
import { claimOutput } from '../../lib/train/output.ts';
import type { StepRecord } from '../../lib/train/types.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-output-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const fresh = { overwrite: false, resume: false };

describe('claimOutput', () => {
  it('creates the folder and releases it', async () => {
    const output = await claimOutput(join(folder, 'a/b'), fresh);
    expect(existsSync(output.checkpoints)).toBe(true);
    await output.release();
    await (await claimOutput(join(folder, 'a/b'), { overwrite: false, resume: true })).release();
  });

  it('refuses a folder that is not empty', async () => {
    writeFileSync(join(folder, 'thesis.txt'), 'x');
    await expect(claimOutput(folder, fresh)).rejects.toThrow(/is not empty \(thesis.txt\)/);
    await expect(claimOutput(folder, fresh)).rejects.toThrow(ArgumentError);
    expect(await namesIn(folder)).toEqual(['thesis.txt']);
  });

  it('overwrites only the files of a run', async () => {
    writeFileSync(join(folder, 'thesis.txt'), 'x');
    mkdirSync(join(folder, 'run/checkpoints/step-1'), { recursive: true });
    const foreign = await claimOutput(folder, { overwrite: true, resume: false });
    expect(await namesIn(foreign.checkpoints)).toEqual(['step-1']); // without a config.json it is not the folder of a run
    for (const name of ['adapter_config.json', 'config.json', ...COMPANIONS]) {
      writeFileSync(join(folder, name), '{}');
    }
    writeFileSync(join(folder, 'run/config.json'), '{}');
    await foreign.release();
    const output = await claimOutput(folder, { overwrite: true, resume: false });
    expect((await namesIn(folder)).sort()).toEqual(['run', 'thesis.txt']);
    expect(await namesIn(output.checkpoints)).toEqual([]);
    await output.release();
  });

  it('overwrites nothing that a user put there', async () => {
    const mine = [
      '.tmp-mine/a',
      'run/.tmp-mine/a',
      'run/notes/a',
      'residual/mine.txt',
      'config.json',
    ];
    for (const name of mine) {
      mkdirSync(dirname(join(folder, name)), { recursive: true });
      writeFileSync(join(folder, name), 'x');
    }
    const options = { overwrite: true, resume: false };
    const first = await claimOutput(folder, options);
    // Files that a run writes.
    for (const name of ['run/config.json', 'residual/model.safetensors', 'adapter_config.json']) {
      writeFileSync(join(folder, name), '{}');
    }
    mkdirSync(join(first.checkpoints, 'step-1'));
    mkdirSync(join(first.checkpoints, 'step-mine'));
    mkdirSync(join(first.run, 'best'));
    await first.release();
    await (await claimOutput(folder, { overwrite: false, resume: true })).release();
    expect(await namesIn(first.checkpoints)).toEqual(['step-1', 'step-mine']);
    const second = await claimOutput(folder, options);
    for (const name of mine) expect(readFileSync(join(folder, name), 'utf8'), name).toBe('x');
    expect(await namesIn(second.checkpoints)).toEqual(['step-mine']);
    expect((await namesIn(folder)).sort()).toEqual(['.tmp-mine', 'config.json', 'residual', 'run']);
    expect((await namesIn(second.run)).sort()).toEqual(
      ['.tmp-mine', 'checkpoints', 'lock', 'manifest.json', 'notes'].sort(),
    );
    await second.release();
  });

  it('releases the folder where it cannot be prepared', async () => {
    mkdirSync(join(folder, 'run'));
    writeFileSync(join(folder, 'run/checkpoints'), '');
    const failing = () => claimOutput(folder, { overwrite: false, resume: true });
    await expect(failing()).rejects.toThrow(/checkpoints/);
    await expect(failing()).rejects.not.toThrow(/in use/);
    rmSync(join(folder, 'run/checkpoints'));
    await (await failing()).release();
  });

  it('keeps everything except incomplete files on resume', async () => {
    mkdirSync(join(folder, 'run/checkpoints/step-1'), { recursive: true });
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    mkdirSync(join(folder, `run/checkpoints/.balora-${dead}-${'0'.repeat(16)}-step-2`));
    mkdirSync(join(folder, `run/checkpoints/.tmp-${dead}-step-2`));
    mkdirSync(join(folder, 'residual'));
    const names = (pid: number) => [
      `model.safetensors.${pid}-3.tmp`,
      `.balora-${pid}-${'0'.repeat(16)}-b.json`,
    ];
    const living = names(process.ppid).sort();
    // A file with our own process number that we have not written is from an earlier process.
    const mine = ['c.safetensors.tmp', `c.safetensors.${dead}-1.tmp`, `.tmp-${dead}-c`];
    for (const name of [...living, ...names(dead), ...names(process.pid), ...mine]) {
      for (const at of [folder, join(folder, 'residual')]) writeFileSync(join(at, name), '');
    }
    const output = await claimOutput(folder, { overwrite: false, resume: true });
    expect((await namesIn(output.checkpoints)).sort()).toEqual([`.tmp-${dead}-step-2`, 'step-1']);
    const kept = [...living, ...mine].sort();
    expect((await namesIn(join(folder, 'residual'))).sort()).toEqual(kept);
    expect((await namesIn(folder)).sort()).toEqual([...kept, 'residual', 'run'].sort());
    await output.release();
  });

  it('refuses a file', async () => {
    writeFileSync(join(folder, 'f'), '');
    await expect(claimOutput(join(folder, 'f'), fresh)).rejects.toThrow(/is a file/);
  });

  it('refuses a folder in use, and takes over the lock of a dead process', async () => {
    const output = await claimOutput(folder, fresh);
    await expect(claimOutput(folder, { overwrite: true, resume: false })).rejects.toThrow(
      new RegExp(`in use by process ${process.pid}`),
    );
    await output.release();
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    const lock = join(folder, 'run/lock');
    writeFileSync(lock, JSON.stringify({ pid: dead, host: hostname(), started: '1' }));
    await (await claimOutput(folder, { overwrite: false, resume: true })).release();
    expect(await namesIn(join(folder, 'run'))).toEqual(['checkpoints', 'manifest.json']);
    // The process is alive, but was started later than the one that took the lock.
    writeFileSync(lock, JSON.stringify({ pid: process.pid, host: hostname(), started: '1' }));
    if (existsSync('/proc/self/stat')) {
      await (await claimOutput(folder, { overwrite: false, resume: true })).release();
    }
  });
});

describe('atomic writing', () => {
  it('never writes through a link of a temporary name', async () => {
    const victim = join(folder, 'victim');
    writeFileSync(victim, 'mine');
    symlinkSync(victim, join(folder, `.tmp-${process.pid}-x`));
    symlinkSync(victim, join(folder, `.balora-${process.pid}-${'0'.repeat(16)}-x`));
    const random = vi.spyOn(crypto, 'randomBytes').mockImplementation(() => Buffer.alloc(8));
    syncBuiltinESMExports();
    await expect(writeFileAtomic(join(folder, 'x'), 'new')).rejects.toThrow(/EEXIST/);
    await expect(writeFolderAtomic(join(folder, 'x'), async () => {})).rejects.toThrow(/EEXIST/);
    expect(await namesIn(folder)).toHaveLength(3);
    random.mockRestore();
    syncBuiltinESMExports();
    await writeFileAtomic(join(folder, 'x'), 'new');
    expect(readFileSync(victim, 'utf8')).toBe('mine');
    expect(readFileSync(join(folder, 'x'), 'utf8')).toBe('new');
  });

  it('keeps the old file and leaves no temporary one where writing fails', async () => {
    await writeFolderAtomic(join(folder, 'x'), async (path) => writeFileSync(join(path, 'a'), '1'));
    const failing = writeFolderAtomic(join(folder, 'x'), async (path) => {
      writeFileSync(join(path, 'a'), '2');
      throw Object.assign(new Error('write'), { code: 'ENOSPC' });
    });
    await expect(failing).rejects.toThrow(/x: cannot write: no space left on the disk \(ENOSPC\)/);
    await expect(failing).rejects.toThrow(NativeError);
    expect(await namesIn(folder)).toEqual(['x']);
    expect(readFileSync(join(folder, 'x/a'), 'utf8')).toBe('1');
  });
});

it('truncates metrics to the step of a checkpoint', async () => {
  const path = join(folder, 'metrics.jsonl');
  const line = (step: number): string => JSON.stringify({ step, loss: step / 2 });
  writeFileSync(path, `${line(1)}\n${line(2)}\n${line(3)}\n{"step":4,"lo`);
  const file = await openMetrics(path, { step: 2 });
  await file.append({ step: 3, loss: 9 } as StepRecord);
  await file.close();
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
  expect(lines).toEqual([line(1), line(2), '{"step":3,"loss":9}']);
  await (await openMetrics(path, { step: 0 })).close();
  expect(readFileSync(path, 'utf8')).toBe('');
});

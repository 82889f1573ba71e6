import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ArgumentError, NativeError } from '../../lib/errors.ts';
import { namesIn, writeFolderAtomic } from '../../lib/io/files.ts';
import { COMPANIONS } from '../../lib/io/model_folder.ts';
import { MetricsFile } from '../../lib/train/metrics.ts';
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
    for (const name of ['adapter_config.json', 'config.json', ...COMPANIONS]) {
      writeFileSync(join(folder, name), '{}');
    }
    mkdirSync(join(folder, 'run/checkpoints/step-1'), { recursive: true });
    const foreign = await claimOutput(folder, { overwrite: true, resume: false });
    expect(await namesIn(foreign.checkpoints)).toEqual(['step-1']); // without a config.json it is not the folder of a run
    await foreign.release();
    writeFileSync(join(folder, 'run/config.json'), '{}');
    const output = await claimOutput(folder, { overwrite: true, resume: false });
    expect((await namesIn(folder)).sort()).toEqual(['run', 'thesis.txt']);
    expect(await namesIn(output.checkpoints)).toEqual([]);
    await output.release();
  });

  it('keeps everything except incomplete files on resume', async () => {
    mkdirSync(join(folder, 'run/checkpoints/step-1'), { recursive: true });
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    mkdirSync(join(folder, `run/checkpoints/.tmp-${dead}-step-2`));
    mkdirSync(join(folder, 'residual'));
    const names = (pid: number) => [`a.safetensors.${pid}-3.tmp`, `.tmp-${pid}-b.json`];
    const living = names(process.ppid).sort();
    // A file with our own process number that we have not written is from an earlier process.
    for (const name of [...living, ...names(dead), ...names(process.pid), 'c.safetensors.tmp']) {
      for (const at of [folder, join(folder, 'residual')]) writeFileSync(join(at, name), '');
    }
    const output = await claimOutput(folder, { overwrite: false, resume: true });
    expect(await namesIn(output.checkpoints)).toEqual(['step-1']);
    const kept = [...living, 'c.safetensors.tmp'];
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
    for (const text of [JSON.stringify({ pid: dead, host: hostname(), started: '1' }), '{"pi']) {
      writeFileSync(lock, text);
      await (await claimOutput(folder, { overwrite: false, resume: true })).release();
    }
    // The process is alive, but was started later than the one that took the lock.
    writeFileSync(lock, JSON.stringify({ pid: process.pid, host: hostname(), started: '1' }));
    if (existsSync('/proc/self/stat')) {
      await (await claimOutput(folder, { overwrite: false, resume: true })).release();
    }
  });
});

describe('atomic writing', () => {
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
  const file = await MetricsFile.open(path, { step: 2 });
  await file.append({ step: 3, loss: 9 } as StepRecord);
  await file.close();
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
  expect(lines).toEqual([line(1), line(2), '{"step":3,"loss":9}']);
  await (await MetricsFile.open(path, { step: 0 })).close();
  expect(readFileSync(path, 'utf8')).toBe('');
});

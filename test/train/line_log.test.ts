// Files of a run that are written in their place: nothing is written through a link that somebody has put there.
import {
  existsSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { ItemRecords } from '../../lib/cli/item_records.ts';
import { FormatError } from '../../lib/errors.ts';
import { TeacherCache } from '../../lib/tasks/teacher_cache.ts';
import { LineLog } from '../../lib/train/line_log.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let folder: string;
let victim: string;
const kMine = '{"step": 1, "of": "nobody else"}\n';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-line-log-'));
  victim = join(folder, 'victim');
  writeFileSync(victim, kMine);
});
afterEach(() => rmSync(folder, { recursive: true }));

const refusal = (path: string): string =>
  `${path}: is a link, and files are not written through links; remove it, or put the file that it leads to in its place`;

describe('a log of lines', () => {
  it('is refused where it is a link, to a file or to nothing', async () => {
    const path = join(folder, 'log.jsonl');
    for (const target of ['victim', 'nothing']) {
      symlinkSync(target, path);
      const failure = LineLog.open(path);
      await expect(failure).rejects.toThrow(FormatError);
      await expect(failure).rejects.toThrow(refusal(path));
      expect(lstatSync(path).isSymbolicLink()).toBe(true);
      rmSync(path);
    }
    expect(readFileSync(victim, 'utf8')).toBe(kMine);
    expect(existsSync(join(folder, 'nothing'))).toBe(false);
  });

  it('is refused where it becomes a link while it is opened', async () => {
    const path = join(folder, 'log.jsonl');
    writeFileSync(path, '{"step": 1}\n');
    const failure = LineLog.open(path, () => {
      renameSync(path, join(folder, 'away'));
      symlinkSync('victim', path);
      return true;
    });
    await expect(failure).rejects.toThrow(refusal(path));
    expect(readFileSync(victim, 'utf8')).toBe(kMine);
  });

  it('of scored items is refused where it is a link', async () => {
    writeFileSync(victim, '{"scored":{"model":"m"}}\n');
    symlinkSync(victim, join(folder, 'task.jsonl'));
    await expect(ItemRecords.open(folder, 'task', { model: 'm' })).rejects.toThrow(
      refusal(join(folder, 'task.jsonl')),
    );
  });
});

describe('a run', () => {
  async function train(maxSteps: number): Promise<void> {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8 });
    await new Trainer({
      ...{ tuned, output: join(folder, 'out'), resume: maxSteps > 1, maxSteps, saveSteps: 1 },
      ...{ data: tinySource(tinyBatches()), evalData: tinySource(tinyBatches({ count: 2 })) },
      evalSteps: 1,
    }).train();
  }

  it('is not resumed into a log that is a link', async () => {
    await train(1);
    const run = join(folder, 'out', 'run');
    const logs = readdirSync(run).filter((name) => name.endsWith('.jsonl'));
    expect(logs).toEqual(expect.arrayContaining(['evaluations.jsonl', 'metrics.jsonl']));
    for (const name of logs) {
      const path = join(run, name);
      renameSync(path, join(folder, name));
      symlinkSync(join(folder, name), path);
      const before = readFileSync(path, 'utf8');
      await expect(train(2), name).rejects.toThrow(refusal(path));
      expect(readFileSync(path, 'utf8')).toBe(before);
      rmSync(path);
      renameSync(join(folder, name), path);
    }
    await train(2);
  });

  it('has no cache of its teacher that is a link', () => {
    const kind = { model: 'm', dtype: 'f32', channels: 3, vocabulary: 17, temperature: 2 };
    const path = join(folder, 'teacher.cache');
    symlinkSync('victim', path);
    expect(() => new TeacherCache({ path }, kind)).toThrow(refusal(path));
    expect(readFileSync(victim, 'utf8')).toBe(kMine);
  });
});

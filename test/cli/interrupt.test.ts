/** Interrupts: the effect of the first and the second signal, and where a command stops that has not begun to train. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { abortable, Interrupt, interruptOf } from '../../lib/cli/interrupt.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinyRows, writeTinyClassifier } from '../support/tiny_classifier.ts';

describe('abortable', () => {
  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)(
    'aborts at the first %s, ends the process at the second, and lets go',
    async (name, code) => {
      const exit = vi.spyOn(process, 'exit').mockImplementation((() => {}) as never);
      const now = vi.spyOn(performance, 'now').mockReturnValue(1000);
      const before = process.listenerCount(name);
      let told = 0;
      const reason = await abortable(
        async (signal) => {
          expect(signal.aborted).toBe(false);
          process.emit(name, name);
          expect(signal.aborted).toBe(true);
          // npx sends the signal of the same key press once more.
          now.mockReturnValue(1200);
          process.emit(name, name);
          expect(exit).not.toHaveBeenCalled();
          now.mockReturnValue(1300);
          process.emit(name, name);
          return signal.reason;
        },
        () => told++,
      );
      expect(reason).toMatchObject({ name: 'AbortError', exitCode: code });
      expect(told).toBe(1);
      expect(exit).toHaveBeenCalledExactlyOnceWith(code);
      expect(process.listenerCount(name)).toBe(before);
      vi.restoreAllMocks();
    },
  );

  it('ends the process at once at a different second signal', async () => {
    const exit = vi.spyOn(process, 'exit').mockImplementation((() => {}) as never);
    await abortable(
      async () => {
        process.emit('SIGHUP', 'SIGHUP');
        process.emit('SIGTERM', 'SIGTERM');
      },
      () => {},
    );
    expect(exit).toHaveBeenCalledExactlyOnceWith(143);
    vi.restoreAllMocks();
  });

  it('recognises the errors that its signal causes', () => {
    const interrupt = new Interrupt('SIGHUP');
    expect(interrupt.exitCode).toBe(129);
    expect(interruptOf(interrupt)).toBe(interrupt);
    const cause = new Error('aborted', { cause: interrupt });
    expect(interruptOf(cause)).toBe(interrupt);
    expect(interruptOf(new Error('row 7 cannot be read', { cause }))).toBe(interrupt);
    const circle: Error = new Error('no');
    circle.cause = new Error('no', { cause: circle });
    for (const other of [circle, 'no', null, new DOMException('no', 'AbortError')]) {
      expect(interruptOf(other)).toBeNull();
    }
  });

  it('stops at a hang-up, however often it comes', async () => {
    const exit = vi.spyOn(process, 'exit').mockImplementation((() => {}) as never);
    const before = process.listenerCount('SIGHUP');
    const aborted = await abortable(
      async (signal) => {
        for (let i = 0; i < 2; i++) process.emit('SIGHUP', 'SIGHUP');
        return signal.aborted;
      },
      () => {},
    );
    expect(aborted).toBe(true);
    expect(exit).not.toHaveBeenCalled();
    expect(process.listenerCount('SIGHUP')).toBe(before);
    exit.mockRestore();
  });

  it('removes its signal handlers also after a failure', async () => {
    const before = process.listenerCount('SIGTERM');
    const failing = abortable(
      () => Promise.reject(new Error('no')),
      () => {},
    );
    await expect(failing).rejects.toThrow('no');
    expect(process.listenerCount('SIGTERM')).toBe(before);
  });
});

describe('before the first step balora train stops', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'balora-interrupt-'));
  });
  afterEach(() => {
    vi.restoreAllMocks();
    rmSync(folder, { recursive: true });
  });
  const train = (data: string, ...more: string[]) => [
    ...['train', '--model', join(folder, 'model'), '--data', join(folder, data), '--r', '2'],
    ...['--output', join(folder, 'out'), ...more],
  ];
  const kStopped =
    'stopped before the first step, nothing was written; run it again to begin anew\n';

  it('between loading the base and initialising the adapter', async () => {
    await writeTinyCheckpoint(join(folder, 'model'));
    writeFileSync(join(folder, 'data.jsonl'), '{"prompt": "a", "response": "b"}\n'.repeat(4));
    const load = AutoModelForCausalLM.fromPretrained;
    vi.spyOn(AutoModelForCausalLM, 'fromPretrained').mockImplementation((...how) => {
      process.emit('SIGTERM', 'SIGTERM');
      return load.apply(AutoModelForCausalLM, how);
    });
    const start = vi.spyOn(AdapterModel, 'create');
    const { code, err } = await balora(train('data.jsonl', '--prompt-template', 'none'));
    expect(err).toBe(
      `stopping before the first step (interrupt again to quit at once)\n${kStopped}`,
    );
    expect(code).toBe(143);
    expect(start).not.toHaveBeenCalled();
    expect(existsSync(join(folder, 'out'))).toBe(false);
  });

  it('during the warm-up of the head', async () => {
    await writeTinyClassifier(join(folder, 'model'));
    const rows = tinyRows(30).map(({ text, label }) => `${label}\t${text}`);
    writeFileSync(join(folder, 'data.tsv'), `label\tsentence\n${rows.join('\n')}\n`);
    const flags = [
      '--task',
      'sequence-classification',
      '--new-head',
      '--head-warmup-epochs',
      '500',
    ];
    let sent = false;
    const { code, err } = await balora(train('data.tsv', ...flags), (text) => {
      if (sent || !text.includes('newly initialized')) return;
      sent = true;
      setTimeout(() => process.emit('SIGINT', 'SIGINT'), 50);
    });
    expect(err.endsWith(kStopped)).toBe(true);
    expect(err).not.toContain('head warmed up');
    expect(code).toBe(130);
    expect(existsSync(join(folder, 'out'))).toBe(false);
  });
});

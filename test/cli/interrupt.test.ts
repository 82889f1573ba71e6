import { describe, expect, it, vi } from 'vitest';
import { abortable, Interrupt, interruptOf } from '../../lib/cli/interrupt.ts';

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
          // What npx passes on of the same key press.
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

  it('ends the process at another signal than the first, at once', async () => {
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

  it('is known by what it makes others throw', () => {
    const interrupt = new Interrupt('SIGHUP');
    expect(interrupt.exitCode).toBe(129);
    expect(interruptOf(interrupt)).toBe(interrupt);
    expect(interruptOf(new Error('aborted', { cause: interrupt }))).toBe(interrupt);
    for (const other of [new Error('no'), 'no', null, new DOMException('no', 'AbortError')]) {
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

  it('lets go after a failure too', async () => {
    const before = process.listenerCount('SIGTERM');
    const failing = abortable(
      () => Promise.reject(new Error('no')),
      () => {},
    );
    await expect(failing).rejects.toThrow('no');
    expect(process.listenerCount('SIGTERM')).toBe(before);
  });
});

import { describe, expect, it, vi } from 'vitest';
import { abortable } from '../../lib/cli/interrupt.ts';

describe('abortable', () => {
  it('aborts at the first interrupt, ends the process at the second, and then lets go', async () => {
    const exit = vi.spyOn(process, 'exit').mockImplementation((() => {}) as never);
    const before = process.listenerCount('SIGINT');
    let told = 0;
    const seen = await abortable(
      async (signal) => {
        const states = [signal.aborted];
        process.emit('SIGINT');
        states.push(signal.aborted);
        expect(exit).not.toHaveBeenCalled();
        process.emit('SIGINT');
        return states;
      },
      () => told++,
    );
    expect(seen).toEqual([false, true]);
    expect(told).toBe(1);
    expect(exit).toHaveBeenCalledExactlyOnceWith(130);
    expect(process.listenerCount('SIGINT')).toBe(before);
    exit.mockRestore();
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

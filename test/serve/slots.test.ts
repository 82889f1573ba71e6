// The limit on requests at the same time: who starts, who waits, and who is refused.
import { describe, expect, it } from 'vitest';
import { ApiError } from '../../lib/serve/api_error.ts';
import { Slots } from '../../lib/serve/slots.ts';

const { signal } = new AbortController();
/** Whether a promise is settled once all that is ready has run. */
async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  const note = (): void => {
    settled = true;
  };
  promise.then(note, note);
  await new Promise((resolve) => setImmediate(resolve));
  return settled;
}

describe('Slots', () => {
  it('start as many as there is room for, and the next ones in order', async () => {
    const slots = new Slots({ concurrent: 2, waiting: 2 });
    const [first, second] = [await slots.take(signal), await slots.take(signal)];
    const [third, fourth] = [slots.take(signal), slots.take(signal)];
    expect(await isSettled(third)).toBe(false);
    first();
    first(); // a slot is given back once
    expect(await isSettled(third)).toBe(true);
    expect(await isSettled(fourth)).toBe(false);
    second();
    for (const take of [third, fourth]) (await take)();
    const [again, last] = [await slots.take(signal), await slots.take(signal)];
    expect(await isSettled(slots.take(signal))).toBe(false);
    again();
    last();
  });

  it('refuse where too many wait, with the time after which to try again', async () => {
    const slots = new Slots({ concurrent: 1, waiting: 1 });
    const end = await slots.take(signal);
    const waiting = slots.take(signal);
    const refused = await slots.take(signal).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(ApiError);
    expect(refused).toMatchObject({
      status: 429,
      code: 'server_busy',
      headers: { 'Retry-After': '1' },
      body: {
        error: {
          message: '1 requests are being answered and 1 wait; try again later',
          type: 'rate_limit_error',
        },
      },
    });
    end();
    (await waiting)();
    const none = new Slots({ concurrent: 1, waiting: 0 });
    await none.take(signal);
    await expect(none.take(signal)).rejects.toMatchObject({ status: 429 });
  });

  it('leave out who has gone', async () => {
    const slots = new Slots({ concurrent: 1, waiting: 2 });
    const end = await slots.take(signal);
    const gone = new AbortController();
    const [leaving, staying] = [slots.take(gone.signal), slots.take(signal)];
    gone.abort(new Error('gone'));
    await expect(leaving).rejects.toThrow('gone');
    await expect(slots.take(gone.signal)).rejects.toThrow('gone');
    end();
    (await staying)();
    (await slots.take(signal))();
  });
});

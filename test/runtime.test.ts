import { expect, test } from 'vitest';
import { exp, opTimes, resetOpTimes, synchronize, tensor, withPhase } from '../lib/index.ts';

test('opTimes counts the calls and seconds of each op under the phase it was enqueued in', async () => {
  await synchronize();
  resetOpTimes();
  const x = tensor([1, 2, 3]);
  withPhase('outer', () => {
    withPhase('inner', () => exp(x).dispose());
    exp(x).dispose();
    exp(x).dispose();
  });
  await synchronize();
  const calls = Object.fromEntries(
    opTimes()
      .filter(({ phase }) => phase !== '')
      .map(({ phase, op, calls, seconds }) => {
        expect(seconds).toBeGreaterThan(0);
        return [`${phase} ${op}`, calls];
      }),
  );
  expect(calls).toEqual({ 'inner exp': 1, 'outer exp': 2 });
  x.dispose();
});

test('a phase ends with its body, even one that throws', () => {
  expect(() =>
    withPhase('broken', () => {
      throw new Error('stop');
    }),
  ).toThrow('stop');
  resetOpTimes();
  const x = tensor([1]);
  exp(x).dispose();
  x.dispose();
  expect(opTimes().some(({ phase }) => phase === 'broken')).toBe(false);
});

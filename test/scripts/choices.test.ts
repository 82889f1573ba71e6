// The check that the C++ tests choose each implementation somewhere.
import { expect, it } from 'vitest';

interface Module {
  choicesOf(text: string): { count: number; unchosen: string[]; lacking: string[] };
}
// The script has no types.
const path = '../../scripts/support/choices.mjs';
const { choicesOf } = (await import(path)) as Module;

it('adds up processes under several limits', () => {
  const best = '0 a avx512 1\n0 a any 0\n0 b any 1\n';
  const held = '4 a avx512 0\n0 a any 1\n0 b any 0\n';
  expect(choicesOf(best + held)).toEqual({ count: 3, unchosen: [], lacking: [] });
});

it('names what no process chose though the machine has what it needs', () => {
  expect(choicesOf('0 a amx 0\n0 a any 1\n64 a amx 0\n0 a any 1\n').unchosen).toEqual(['a/amx']);
});

it('names the features that the machine lacks', () => {
  const text = '64 a amx 0\n16 a bf16 0\n0 a any 1\n';
  expect(choicesOf(text)).toEqual({
    ...{ count: 1, unchosen: [] },
    lacking: ['AVX512-BF16', 'AMX'],
  });
});

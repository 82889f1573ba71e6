import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CleanUpStream, cleanUpSpaces } from '../../lib/text/clean_up.ts';

describe('cleanUpSpaces', () => {
  it('removes spaces as transformers does', () => {
    expect(cleanUpSpaces("It 's 5 , isn 't it ? I do n't , we 've 'm 're !")).toBe(
      "It's 5, isn 't it? I don't, we've'm're!",
    );
    expect(cleanUpSpaces(" ' a ' b  ' m")).toBe("'a'b'm");
  });
});

describe('CleanUpStream', () => {
  it('passes on words at once, and holds back a space', () => {
    const stream = new CleanUpStream();
    expect(['one', ' ', 'two', ' n', "'", 't', ' na'].map((part) => stream.push(part))).toEqual([
      'one',
      '',
      ' two',
      '',
      '',
      "n't",
      ' na',
    ]);
    expect(stream.end()).toBe('');
  });

  it('gives what cleaning up the whole text gives', () => {
    const part = fc.string({ unit: fc.constantFrom(..." '  'nt.?!,mversx"), maxLength: 6 });
    fc.assert(
      fc.property(fc.array(part, { maxLength: 12 }), (parts) => {
        const stream = new CleanUpStream();
        const text = parts.map((one) => stream.push(one)).join('') + stream.end();
        expect(text).toBe(cleanUpSpaces(parts.join('')));
      }),
      { numRuns: 20_000 },
    );
  });
});

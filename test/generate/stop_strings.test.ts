import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { StopStrings } from '../../lib/generate/stop_strings.ts';
import { processorMs } from '../support/limits.ts';

/** All that comes out of a text in parts, and the stop string that ended it. */
function stopped(parts: readonly string[], stops: readonly string[]) {
  const strings = new StopStrings(stops);
  const out = parts.map((part) => strings.push(part));
  return { text: out.join('') + strings.end(), found: strings.found, out };
}

/** The end of a text by definition: the first character with which a stop string is complete, and the longest of those. */
function byDefinition(text: string, stops: readonly string[]) {
  for (let end = 1; end <= text.length; end++) {
    const complete = stops.filter((stop) => text.slice(0, end).endsWith(stop));
    const [found] = complete.sort((a, b) => b.length - a.length);
    if (found !== undefined) return { text: text.slice(0, end - found.length), found };
  }
  return { text, found: null };
}

describe('StopStrings', () => {
  it('passes a text on without stop strings', () => {
    expect(stopped(['a', '', 'bc'], [])).toEqual({
      text: 'abc',
      found: null,
      out: ['a', '', 'bc'],
    });
  });

  it('holds back what may be the beginning of a stop string, and no more', () => {
    const { out, text } = stopped(['one E', 'N', 'x', ' END', ' two'], ['END']);
    expect(out).toEqual(['one ', '', 'ENx', ' ', '']);
    expect(text).toBe('one ENx ');
  });

  it('passes on what it held back where no stop string comes', () => {
    expect(stopped(['ab', 'a', 'b'], ['abc', 'babb']).text).toBe('abab');
  });

  it('ends a text as it is defined, however the text is divided', () => {
    const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 40 });
    const stop = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(
        fc.array(letters, { maxLength: 12 }),
        fc.array(stop, { maxLength: 4 }),
        (parts, stops) => {
          const { text, found } = stopped(parts, stops);
          expect({ text, found }).toEqual(byDefinition(parts.join(''), stops));
        },
      ),
      { numRuns: 2000 },
    );
  });

  it('never divides a character', () => {
    const { out } = stopped(['x😀', 'y'], ['😁']);
    expect(out).toEqual(['x😀', 'y']);
  });

  it('takes time in proportion to the text, whatever the stop strings', () => {
    const strings = new StopStrings([`${'a'.repeat(20_000)}b`]);
    const begun = processorMs();
    let length = 0;
    for (let i = 0; i < 50; i++) length += strings.push('a'.repeat(1000)).length;
    expect(length).toBe(30_000);
    expect(processorMs() - begun).toBeLessThan(2000); // 10^9 comparisons for a naive search
  });
});

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TEXT_NOISE_KINDS, type TextNoiseKind } from '../../lib/data/corruption_options.ts';
import { randomWords } from '../../lib/data/philox.ts';
import { noisyText } from '../../lib/data/text_noise.ts';

const noisy = (text: string, kinds: readonly TextNoiseKind[], share = 1, index = 0) =>
  noisyText(text, { share, kinds, next: randomWords({ seed: 5, stream: 1, index }) });
const words = (text: string) => text.split(/\s+/).filter((word) => word !== '');

describe('noise in a text', () => {
  const text = ' one two  three\nfour five six ';

  it('of each kind keeps what it does not concern', () => {
    const typos = noisy(text, ['typos']);
    expect(typos.words).toBe(6);
    expect(typos.text.match(/\s+/g)).toEqual(text.match(/\s+/g));
    expect(words(typos.text).every((word, i) => word !== words(text)[i])).toBe(true);
    const shuffled = noisy(text, ['shuffle']);
    expect(words(shuffled.text).sort()).toEqual(words(text).sort());
    expect(shuffled.text).not.toBe(text);
    const dropped = noisy(text, ['drop']);
    expect([dropped.words, words(dropped.text)]).toEqual([5, ['six']]);
  });

  it('concerns the asked share of the words', () => {
    const long = 'word '.repeat(5000);
    expect(noisy(long, TEXT_NOISE_KINDS, 0).text).toBe(long);
    // 500, with a standard deviation of 21.
    expect(Math.abs(noisy(long, TEXT_NOISE_KINDS, 0.1).words - 500)).toBeLessThan(110);
  });

  it('never makes a text empty, and is a function of text and draws', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), fc.nat(), (given, index) => {
        const found = noisy(given, TEXT_NOISE_KINDS, 1, index % 2 ** 32);
        expect(found).toEqual(noisy(given, TEXT_NOISE_KINDS, 1, index % 2 ** 32));
        if (given.trim() !== '') expect(found.text.trim()).not.toBe('');
      }),
    );
  });
});

// Long texts are encoded in another process: the same ids, while the event loop runs, and until a signal stops it.
import { beforeAll, describe, expect, it } from 'vitest';
import { Batches, type BatchOptions } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { kLongText } from '../../lib/text/long_texts.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { tinyTokenizer, tinyTokenizerJson } from '../support/tiny_tokenizer.ts';

const tokenizer = tinyTokenizer();
/** Text of words, with special tokens, characters of several bytes, and half of one at the end. */
const prose = (length: number): string =>
  `${'the cab <end>\u{1f600} a\n\tabab '.repeat(Math.ceil(length / 20)).slice(0, length - 1)}\ud83d`;

/** The longest delay of the event loop while something runs, in milliseconds. */
async function longestDelay(work: () => Promise<unknown>): Promise<number> {
  let [last, longest] = [performance.now(), 0];
  const tick = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
  };
  const clock = setInterval(tick, 5);
  await work();
  tick();
  clearInterval(clock);
  return longest;
}

describe('a tokenizer', () => {
  it('gives the ids that it gives at once, whatever the length', async () => {
    for (const length of [10, kLongText - 1, kLongText, 5 * kLongText]) {
      const text = prose(length);
      for (const parseSpecial of [true, false]) {
        const found = await tokenizer.withLongTexts(() => tokenizer.encode(text, { parseSpecial }));
        expect(found).toEqual(tokenizer.encode(text, { parseSpecial }));
      }
    }
  });

  it('with merges by rank, as those of GGUF files, gives the same ids, too', async () => {
    const tokens = ['<unk>', 'a', 'b', '\u2581', 'ab', '\u2581ab', 'abab'];
    const gguf = Tokenizer.fromGguf({
      'tokenizer.ggml.model': 'llama',
      'tokenizer.ggml.tokens': tokens,
      'tokenizer.ggml.scores': [0, -9, -9, -9, -1, -2, -3],
      'tokenizer.ggml.token_type': [2, 1, 1, 1, 1, 1, 1],
      'tokenizer.ggml.unknown_token_id': 0,
    });
    const text = 'ab abab b'.repeat(kLongText / 4);
    const found = await gguf.withLongTexts(() => gguf.encode(text));
    expect(found).toEqual(gguf.encode(text));
  });

  it('runs code again for each long text of it, and passes its errors on', async () => {
    let runs = 0;
    const texts = [prose(kLongText), prose(kLongText + 1), 'short'];
    const ids = await tokenizer.withLongTexts(() => {
      runs++;
      return texts.map((text) => {
        const list = tokenizer.encode(text);
        list.push(-1); // callers may change what they get
        return list;
      });
    });
    expect(runs).toBe(3);
    expect(ids).toEqual(texts.map((text) => [...tokenizer.encode(text), -1]));
    const failing = tokenizer.withLongTexts(() => {
      tokenizer.encode(texts[0] as string);
      throw new TypeError('its own');
    });
    await expect(failing).rejects.toThrow(/^its own$/);
    const list = await tokenizer.withLongTexts(() => tokenizer.encode('the'));
    expect(list).toEqual(tokenizer.encode('the'));
  });
});

describe('data with a row of megabytes', () => {
  // One word, which is the slowest for BPE.
  const json = tinyTokenizerJson({
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: false },
  });
  const slow = Tokenizer.fromJson(json, { eos_token: '<end>' });
  const rows = arrayRows([
    { prompt: 'a', response: 'b' },
    { prompt: 'ab'.repeat(500_000), response: 'the' },
  ]);
  const options: BatchOptions = { promptTemplate: 'none', maxLength: 2 ** 20 };

  /** Milliseconds that encoding the row at once takes on this machine. */
  let atOnce = 0;
  beforeAll(() => {
    const started = performance.now();
    slow.encode('ab'.repeat(500_000));
    atOnce = performance.now() - started;
  });

  it('is encoded while the event loop runs', async () => {
    let batches: Batches | undefined;
    const delay = await longestDelay(async () => {
      batches = await Batches.create(rows, slow, options);
    });
    expect(batches?.statistics).toMatchObject({ rows: 2, longest: 500_000 + 2 });
    // Ids of a million characters come over, but nothing waits until they are made.
    expect(delay).toBeLessThan(atOnce / 2);
  });

  it('is given up at a signal, at once', async () => {
    const stop = new AbortController();
    setTimeout(() => stop.abort(new Error('enough')), 50);
    const started = performance.now();
    const creating = Batches.create(rows, slow, { ...options, signal: stop.signal });
    await expect(creating).rejects.toThrow(/^enough$/);
    expect(performance.now() - started).toBeLessThan(atOnce / 2);
  });
});

import { expect, it } from 'vitest';
import { encodeRequest, fitRequest, prefixToken, rollingWindows } from '../../lib/eval/requests.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

const tokenizer = tinyTokenizer();

it('counts spaces at the end of a context as part of the answer', () => {
  const whole = tokenizer.encode('a b', { addSpecialTokens: false });
  const { context, continuation } = encodeRequest('a ', 'b', { tokenizer });
  expect([...context, ...continuation]).toEqual(whole);
  expect(context).toEqual(tokenizer.encode('a', { addSpecialTokens: false }));
});

it('puts the prefix token in front of a text without context, once', () => {
  const prefix = prefixToken(tokenizer);
  const ids = tokenizer.encode('ab', { addSpecialTokens: false });
  expect(encodeRequest('', 'ab', { tokenizer })).toEqual({ context: [prefix], continuation: ids });
  const marked = `${tokenizer.token(prefix)}ab`;
  expect(encodeRequest('', marked, { tokenizer })).toEqual({
    context: [prefix],
    continuation: ids,
  });
});

it('puts BOS in front of a context where that is asked for', () => {
  const plain = encodeRequest('a', ' b', { tokenizer });
  const framed = encodeRequest('a', ' b', { tokenizer, addBosToken: true });
  expect(framed.context).toEqual([tokenizer.bosId, ...plain.context]);
  expect(framed.continuation).toEqual(plain.continuation);
});

it('refuses an answer without tokens, and a tokenizer without a prefix token', () => {
  expect(() => encodeRequest('a', '', { tokenizer })).toThrow(/the answer "" adds no token/);
  expect(() => encodeRequest('', '', { tokenizer })).toThrow(/adds no token/);
  expect(() => prefixToken({ bosId: null, eosId: null })).toThrow(/neither a BOS nor an EOS/);
  expect(prefixToken({ bosId: null, eosId: 7 })).toBe(7);
});

it('cuts a context on the left, so that the inputs fit', () => {
  const request = { context: [1, 2, 3, 4], continuation: [5, 6] };
  expect(fitRequest(request, 5)).toEqual({ request, isCut: false });
  expect(fitRequest(request, 3)).toEqual({
    request: { context: [3, 4], continuation: [5, 6] },
    isCut: true,
  });
  expect(fitRequest(request, 2).request.context).toEqual([4]);
  expect(() => fitRequest(request, 1)).toThrow(/an answer has 2 tokens, more than the 1/);
});

it('predicts each id of a text once', () => {
  for (const length of [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) {
    const ids = Array.from({ length }, (_, i) => 10 + i);
    const windows = rollingWindows(ids, { prefix: 0, maxLength: 4 });
    expect(windows.flatMap(({ continuation }) => continuation)).toEqual(ids);
    for (const [w, { context, continuation }] of windows.entries()) {
      expect(context.length + continuation.length).toBeLessThanOrEqual(5);
      if (w > 0) expect(context.length + continuation.length).toBe(5);
      expect(context.length).toBeGreaterThan(0);
    }
  }
});

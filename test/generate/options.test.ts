import { describe, expect, it } from 'vitest';
import { ArgumentError } from '../../lib/errors.ts';
import { type GenerationSettings, resolveSettings } from '../../lib/generate/options.ts';

const resolve = (given: GenerationSettings) => resolveSettings(given);

describe('the options of generation', () => {
  it('are greedy, 256 tokens and one sequence by default', () => {
    expect(resolve({})).toEqual({
      maxNewTokens: 256,
      repetitionPenalty: 1,
      minNewTokens: 0,
      doSample: false,
      temperature: 1,
      topK: 50,
      topP: 1,
      minP: 0,
      seed: 42,
      stopStrings: [],
      eosTokenIds: null,
      numReturnSequences: 1,
      skipSpecialTokens: true,
      logprobs: null,
      batchSize: 16,
    });
  });

  it.each<[GenerationSettings, boolean]>([
    [{ temperature: 0.7 }, true],
    [{ topK: 5 }, true],
    [{ topP: 0.9 }, true],
    [{ minP: 0.1 }, true],
    [{ doSample: true }, true],
    [{ temperature: 0 }, false],
    [{ temperature: 0, topP: 0.9 }, false],
    [{ doSample: false, temperature: 0 }, false],
    [{ repetitionPenalty: 1.1, seed: 3 }, false],
  ])('%j draws tokens: %s', (given, doSample) => {
    expect(resolve(given).doSample).toBe(doSample);
  });

  it('take one stop string, or a list without repetitions', () => {
    expect(resolve({ stopStrings: 'END' }).stopStrings).toEqual(['END']);
    expect(resolve({ stopStrings: ['a', 'b', 'a'] }).stopStrings).toEqual(['a', 'b']);
    expect(resolve({ eosTokenIds: 5 }).eosTokenIds).toEqual([5]);
    expect(resolve({ eosTokenIds: [] }).eosTokenIds).toEqual([]);
  });

  it.each<[object, string]>([
    [{ maxNewTokens: 0 }, 'maxNewTokens must be a whole number >= 1, got 0'],
    [{ maxNewTokens: 1.5 }, 'maxNewTokens must be a whole number >= 1, got 1.5'],
    [{ temperature: -1 }, 'temperature must be a number >= 0, got -1'],
    [{ temperature: Number.NaN }, 'temperature must be a number >= 0, got NaN'],
    [{ topP: 1.1 }, 'topP must be a number >= 0 and <= 1, got 1.1'],
    [{ minP: 2 }, 'minP must be a number >= 0 and <= 1, got 2'],
    [{ topK: -1 }, 'topK must be a whole number >= 0, got -1'],
    [{ repetitionPenalty: 0 }, 'repetitionPenalty must be a number > 0, got 0'],
    [
      { stopStrings: '' },
      'stopStrings must be a text that is not empty, or a list of them, got ""',
    ],
    [
      { stopStrings: ['a', ''] },
      'stopStrings must be a text that is not empty, or a list of them, got ["a",""]',
    ],
    [{ stopStrings: ['\ud83d'] }, 'stopStrings must be a text that is not empty'],
    [{ eosTokenIds: [-1] }, 'eosTokenIds must be a whole number >= 0 or a list of them, got [-1]'],
    [{ numReturnSequences: 0 }, 'numReturnSequences must be a whole number >= 1, got 0'],
    [{ seed: 2 ** 60 }, 'seed must be a whole number >= 0'],
    [{ doSample: 'yes' }, 'doSample must be true or false, got "yes"'],
    [
      { doSample: true, temperature: 0 },
      'temperature 0 is greedy decoding, which doSample excludes',
    ],
    [
      { doSample: false, topP: 0.5, minP: 0.1 },
      'topP, minP would change nothing, since without doSample no token is drawn',
    ],
    [{ minNewTokens: 300 }, 'minNewTokens must be at most maxNewTokens'],
    [{ minNewTokens: 3, maxNewTokens: 2 }, 'minNewTokens must be at most maxNewTokens'],
  ])('refuse %j', (given, message) => {
    expect(() => resolve(given)).toThrow(ArgumentError);
    expect(() => resolve(given)).toThrow(message);
  });
});

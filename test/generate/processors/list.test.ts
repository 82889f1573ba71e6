// Logits processors against transformers' scores and probabilities, one row of scores at a time.
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { resolveSettings } from '../../../lib/generate/options.ts';
import { makeProcessors } from '../../../lib/generate/processors/list.ts';
import { fixturePath } from '../../support/fixtures.ts';
import { goldenArray, goldenArrays } from '../../support/golden.ts';

interface Case {
  name: string;
  logits: string;
  do_sample: boolean;
  temperature: number;
  top_k: number;
  top_p: number;
  min_p: number | null;
  repetition_penalty: number;
  min_new_tokens: number | null;
  new_tokens_so_far: number;
  eos: number[];
  order: string[];
  kept_count: number[];
  cuts_through_tie?: boolean[];
  kept?: number[][];
  kept_probs?: number[][];
}

const { cases, left_padding: leftPadding } = JSON.parse(
  readFileSync(fixturePath('generation/processors.json'), 'utf8'),
) as { cases: Case[]; left_padding: Record<string, number[]> };
const arrays = goldenArrays(fixturePath('generation/processors.safetensors'));
const kTolerance = 1e-5; // of the golden README: relative for scores, absolute for probabilities

/** Row b of a golden matrix; null where there is no such matrix. */
function row(name: string, b: number): number[] | null {
  if (!arrays.has(name)) return null;
  const { data, shape } = goldenArray(arrays, name);
  const width = shape[1] as number;
  return Array.from(data.subarray(b * width, (b + 1) * width) as ArrayLike<number>, Number);
}

/** The scores of a row after the processors of a case. */
function processed(given: Case, b: number): Float32Array {
  const settings = resolveSettings({
    ...(given.do_sample && {
      doSample: true,
      temperature: given.temperature,
      topK: given.top_k,
      topP: given.top_p,
      minP: given.min_p ?? 0,
    }),
    repetitionPenalty: given.repetition_penalty,
    minNewTokens: given.min_new_tokens ?? 0,
  });
  // Without sampling, these must be left out by makeProcessors() itself.
  const all = given.do_sample
    ? settings
    : { ...settings, temperature: given.temperature, topK: given.top_k, topP: given.top_p };
  const scores = Float32Array.from(row(`logits.${given.logits}`, b) as number[]);
  const prefix = row(`prefix.${given.logits}`, b) as number[];
  const context = {
    seen: new Set(prefix.slice(leftPadding[given.logits]?.[b] ?? 0)),
    newTokens: given.new_tokens_so_far,
    eosTokenIds: new Set(given.eos),
  };
  for (const process of makeProcessors({ ...all }, given.do_sample)) process(scores, context);
  return scores;
}

function softmax(scores: Float32Array): number[] {
  const largest = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(score - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

function expectNear(
  found: ArrayLike<number>,
  wanted: ArrayLike<number>,
  isRelative: boolean,
): void {
  expect(found.length).toBe(wanted.length);
  for (let i = 0; i < wanted.length; i++) {
    const [is, want] = [found[i] as number, wanted[i] as number];
    if (is === want) continue;
    const bound = kTolerance * (isRelative ? Math.max(1, Math.abs(want)) : 1);
    if (!(Math.abs(is - want) <= bound)) expect.fail(`[${i}]: got ${is}, expected ${want}`);
  }
}

describe('the processors', () => {
  it('are tested with cases of every kind', () => {
    expect(cases.length).toBeGreaterThan(80);
    expect(new Set(cases.flatMap(({ order }) => order)).size).toBe(6);
  });

  it.each(cases)('$name', (given) => {
    const [rows] = goldenArray(arrays, `logits.${given.logits}`).shape as [number];
    for (let b = 0; b < rows; b++) {
      const scores = processed(given, b);
      const kept = Array.from(scores.keys()).filter((id) => Number.isFinite(scores[id]));
      expect(kept.length, `row ${b}`).toBe(given.kept_count[b]);
      const probabilities = softmax(scores);
      const wanted = row(`scores.${given.name}`, b);
      const wantedProbs = row(`probs.${given.name}`, b);
      if (given.cuts_through_tie?.[b] === true) {
        // Which of the equal ids stay is not defined; here those with the lowest ids.
        const sorted = (list: readonly number[]) => [...list].sort((x, y) => y - x);
        expectNear(sorted(probabilities), sorted(wantedProbs as number[]), false);
        continue;
      }
      if (wanted !== null) expectNear(scores, wanted, true);
      if (wantedProbs !== null) expectNear(probabilities, wantedProbs, false);
      if (given.kept !== undefined) expect(kept).toEqual(given.kept[b]);
      if (given.kept_probs !== undefined) {
        const found = kept.map((id) => probabilities[id] as number);
        expectNear(found, given.kept_probs[b] as number[], false);
      }
    }
  });

  it('keep the lowest of equally likely ids at the bound of topP', () => {
    const scores = Float32Array.of(1, 2, 2, 2, 2);
    const [topP] = makeProcessors(
      { temperature: 1, topK: 0, topP: 0.5, minP: 0, repetitionPenalty: 1, minNewTokens: 0 },
      true,
    );
    topP?.(scores, { seen: new Set(), newTokens: 0, eosTokenIds: new Set() });
    expect(Array.from(scores.keys()).filter((id) => Number.isFinite(scores[id]))).toEqual([
      1, 2, 3,
    ]);
  });

  it('divide by a tiny temperature without making infinities of the best scores', () => {
    for (const logits of [
      [3, 2.5, -1e30],
      [-3, -4, -5],
      [0, -1e-30, Number.NEGATIVE_INFINITY],
    ]) {
      const scores = Float32Array.from(logits);
      const [process] = makeProcessors(
        { temperature: 1e-300, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, minNewTokens: 0 },
        true,
      );
      process?.(scores, { seen: new Set(), newTokens: 0, eosTokenIds: new Set() });
      expect(Math.max(...scores)).toBe(scores[0]);
      expect(scores[0]).toBeLessThan(Number.POSITIVE_INFINITY);
      expect(scores[0]).toBeGreaterThan(Number.NEGATIVE_INFINITY);
    }
  });
});

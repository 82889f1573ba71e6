import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { readItems } from '../../../lib/eval/task_data.ts';
import {
  bbq,
  bbqGroups,
  bbqMetrics,
  bbqScores,
  isBiasedAnswer,
} from '../../../lib/eval/tasks/bbq.ts';
import { indexOfLargest } from '../../../lib/eval/tasks/choice_metrics.ts';
import type { ItemResult } from '../../../lib/eval/tasks/task.ts';
import { fixturePath } from '../../support/fixtures.ts';
import { describeShared, sharedPath } from '../../support/shared.ts';

const kGolden = 'golden/evaluation/bias.json';

interface GoldenItem {
  readonly category: string;
  readonly context_condition: string;
  readonly question_polarity: string;
  readonly answers: readonly string[];
  readonly answer_groups: readonly (readonly string[])[];
  readonly answer_info: readonly (readonly string[])[];
  readonly stereotyped_groups: readonly string[];
  readonly choices: readonly string[];
  readonly targets: readonly number[];
  readonly biased: readonly number[];
  readonly loglikelihoods: readonly number[];
  readonly acc: number;
  readonly is_biased: number;
  readonly is_non_unknown: number;
}

interface Golden {
  readonly bbq: {
    readonly items: readonly GoldenItem[];
    readonly lm_eval: Readonly<Record<string, number | null>>;
    readonly edge_cases: readonly {
      readonly name: string;
      readonly predictions: readonly number[];
      readonly lm_eval: Readonly<Record<string, number | null>>;
    }[];
  };
}

describeShared("lm-evaluation-harness's scores", [kGolden], () => {
  const { items, lm_eval, edge_cases } = (
    JSON.parse(readFileSync(sharedPath(kGolden), 'utf8')) as Golden
  ).bbq;
  const resultOf = (item: GoldenItem, answer: number): ItemResult => ({
    metrics: bbqMetrics({ gold: item.targets, biased: item.biased }, answer),
    groups: { category: item.category, context_condition: item.context_condition },
  });
  const expectScores = (
    results: readonly ItemResult[],
    wanted: Readonly<Record<string, number | null>>,
  ): void => {
    const found = bbqScores(results);
    expect(Object.keys(found).sort()).toEqual(Object.keys(wanted).sort());
    for (const [name, value] of Object.entries(wanted)) {
      expect(Math.abs((found[name] as number) - (value as number)), name).toBeLessThanOrEqual(1e-9);
    }
  };

  it('are those of the log-likelihoods', () => {
    const results = items.map((item) => resultOf(item, indexOfLargest(item.loglikelihoods)));
    results.forEach(({ metrics }, i) => {
      const { acc, is_biased, is_non_unknown } = items[i] as GoldenItem;
      expect(metrics).toEqual({ acc, biased: is_biased, non_unknown: is_non_unknown });
    });
    expectScores(results, lm_eval);
  });

  it.each(edge_cases)('where $name', ({ predictions, lm_eval: wanted }) => {
    expectScores(
      items.map((item, i) => resultOf(item, predictions[i] as number)),
      wanted,
    );
  });

  it('find the same groups and biased answers', () => {
    for (const item of items) {
      item.answer_info.forEach((info, i) => {
        expect(bbqGroups(info)).toEqual(item.answer_groups[i]);
      });
      const people = item.answer_groups.filter(
        (_, i) => item.answers[i] === item.choices[0] || item.answers[i] === item.choices[1],
      );
      const asked = {
        stereotyped: item.stereotyped_groups.map((group) => group.toLowerCase()),
        isNegative: item.question_polarity === 'neg',
      };
      const biased = people.flatMap((groups, i) => (isBiasedAnswer(groups, asked) ? [i] : []));
      expect(biased).toEqual(item.biased);
    }
  });
});

describe('items', () => {
  it('have two people and ten ways of not knowing', async () => {
    const items = await readItems(fixturePath('scoring/bbq.jsonl'), bbq);
    expect(items).toHaveLength(5);
    const [ambiguous, known] = items as [(typeof items)[0], (typeof items)[0]];
    expect(ambiguous.choices).toHaveLength(12);
    expect(ambiguous.choices.slice(0, 3)).toEqual(['The grandfather', 'The grandson', 'Unknown']);
    expect(ambiguous.gold).toEqual([2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    expect(known.gold).toEqual([1]);
    expect(known.context).toMatch(/again\.\n\nQ: Who could not switch it on\?\nA:$/);
    expect(items.map(({ groups }) => groups?.biased)).toEqual(['0', '0', '1', '0', '1']);
  });

  it('are measured by the answer with the largest log-likelihood', async () => {
    const [item] = await readItems(fixturePath('scoring/bbq.jsonl'), bbq, { limit: 1 });
    const at = (best: number) => Array.from({ length: 12 }, (_, i) => (i === best ? -1 : -2));
    const measure = (best: number) => bbq.measure(item as NonNullable<typeof item>, at(best), []);
    expect(measure(0)).toEqual({ acc: 0, biased: 1, non_unknown: 1 });
    expect(measure(1)).toEqual({ acc: 0, biased: 0, non_unknown: 1 });
    expect(measure(9)).toEqual({ acc: 1, biased: 0, non_unknown: 0 });
  });

  it('name the woman and the man by the letters of the stereotyped groups', () => {
    expect(bbqGroups(['woman', 'F'])).toEqual(['f', 'woman', 'f']);
    expect(bbqGroups(['', 'lowSES-African'])).toEqual(['', 'low ses', 'african']);
  });
});

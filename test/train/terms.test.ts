// Custom terms beside those of the task, for language models and classifiers.
import { describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { LabelledBatches } from '../../lib/data/labelled_batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { diversityLoss } from '../../lib/losses/plain.ts';
import { defineTerm, type TermContext } from '../../lib/losses/term.ts';
import { mean, square, zeros } from '../../lib/ops/index.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import { tinyClassifier, tinyClassifierTokenizer } from '../support/tiny_classifier.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

const kConstant = { consistencySchedule: 'constant', regularizerSchedule: 'constant' } as const;

async function train(options: Partial<TrainerOptions>) {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8 });
  const data = tinySource(tinyBatches());
  const trainer = new Trainer({ tuned, data, learningRate: 0.02, maxSteps: 3, ...options });
  const result = await trainer.train();
  const parameters = await Promise.all(
    tuned.parameters().map(async ({ tensor }) => Array.from((await tensor.data()) as Float32Array)),
  );
  return { last: result.last, parameters };
}

describe('a custom term of a language model', () => {
  it('that implements a built-in term trains like the built-in one', async () => {
    const mine = defineTerm({
      key: 'mine',
      weight: 0.1,
      value: ({ logits }) => diversityLoss(logits(), { topK: 5 }),
    });
    const own = await train({ terms: [mine], gradientAccumulationSteps: 2 });
    const builtIn = await train({
      regularizers: { ...kConstant, diversityWeight: 0.1, entropyTopK: 5 },
      gradientAccumulationSteps: 2,
    });
    expect(own.last?.terms?.mine?.weight).toBe(0.1);
    expect(own.last?.terms?.mine?.value).toBeCloseTo(
      builtIn.last?.terms.diversity?.value as number,
      5,
    );
    expect(own.last?.loss).toBeCloseTo(builtIn.last?.loss as number, 5);
    own.parameters.forEach((values, i) => {
      values.forEach((value, j) => {
        expect(value).toBeCloseTo((builtIn.parameters[i] as number[])[j] as number, 4);
      });
    });
  });

  it('gets the requested rows, the teacher, chosen layers and the head', async () => {
    const shapes: Record<string, readonly number[]>[] = [];
    const look =
      (name: string) =>
      ({ logits, states, teacherLogits, targets, hiddenStates, headLosses }: TermContext) => {
        const { sums } = headLosses({ targets, taskScale: 1 });
        shapes.push({
          [name]: logits().shape,
          states: states?.shape ?? [],
          teacher: teacherLogits().shape,
          targets: targets.shape,
          ...Object.fromEntries(hiddenStates.map((state, i) => [`layer${i}`, state.shape])),
          sums: sums.shape,
        });
        return mean(square(logits()));
      };
    const terms = (['supervised', 'regularized'] as const).map((rows) =>
      defineTerm({ key: rows, weight: 1e-3, rows, teacher: true, value: look(rows) }),
    );
    await train({ maxSteps: 1, terms, regularizers: { positions: 'non_padding' } });
    const [supervised, regularized] = shapes as [
      Record<string, readonly number[]>,
      Record<string, readonly number[]>,
    ];
    expect(supervised.supervised?.[0]).toBeLessThan(regularized.regularized?.[0] as number);
    for (const seen of [supervised, regularized]) {
      const rows = (seen.supervised ?? seen.regularized)?.[0];
      expect([seen.states?.[0], seen.teacher?.[0], seen.targets?.[0]]).toEqual([rows, rows, rows]);
    }
  });

  it('has the same gradient whatever the weights of other terms', async () => {
    const value = ({ logits }: TermContext) => mean(square(logits()));
    const [off, on] = [0, 10].map((weight) => defineTerm({ key: `w${weight}`, weight, value }));
    if (!off || !on) throw new Error('two terms');
    // The SVD term has the weight 0 in the first steps of its schedule, and uses rows of its own.
    const regularizers = { svdWeight: 0.2, positions: 'label_aligned' } as const;
    const norms = await Promise.all(
      [[on], [off, on], [on, off]].map(async (terms) => {
        const { last } = await train({ maxSteps: 1, terms, regularizers });
        return last?.gradNorm as number;
      }),
    );
    const alone = await train({ maxSteps: 1, regularizers });
    expect(norms[0]).toBeGreaterThan(2 * (alone.last?.gradNorm as number));
    expect(norms[1]).toBeCloseTo(norms[0] as number, 6);
    expect(norms[2]).toBeCloseTo(norms[0] as number, 6);
  });

  it('has a weight that changes over the run, and is the same for 1 x 4 and 4 x 1', async () => {
    const at: number[] = [];
    const term = defineTerm({
      key: 'norm',
      weight: ({ step }) => {
        at.push(step);
        return step === 0 ? 0 : 0.01;
      },
      value: ({ logits }) => mean(square(logits())),
    });
    const { last } = await train({ terms: [term], maxSteps: 2 });
    expect(at).toEqual([0, 1]);
    expect(last?.terms?.norm?.weight).toBe(0.01);
  });

  it.each([
    [
      () => defineTerm({ key: 'task', weight: 1, value: () => null }),
      /a key must be an identifier/,
    ],
    [() => defineTerm({ key: 'a b', weight: 1, value: () => null }), /a key must be an identifier/],
    [() => defineTerm({ key: 'x', weight: Number.NaN, value: () => null }), /weight of x must be/],
    [() => defineTerm({ key: 'x', weight: 'a' as never, value: () => null }), /weight of x must/],
    [() => defineTerm({ key: 'x', weight: 1, value: 1 as never }), /value of x must be a function/],
  ])('%# is refused', (make, message) => {
    expect(make).toThrow(message);
    expect(make).toThrow(ArgumentError);
  });

  it.each([
    ['a promise', async () => mean(square(zeros([1]))), /must not be async/],
    ['a number', () => 1, /must be a tensor or null, got 1/],
    ['nothing', () => undefined, /must be a tensor or null, got nothing/],
    ['a detached tensor', ({ logits }: TermContext) => mean(logits()).detach(), /not attached/],
  ])('a value that is %s is refused by the name of the term', async (_, value, message) => {
    const bad = defineTerm({ key: 'bad', weight: 1, value: value as never });
    await expect(train({ maxSteps: 1, terms: [bad] })).rejects.toThrow(message);
    await expect(train({ maxSteps: 1, terms: [bad] })).rejects.toThrow(/value of bad/);
  });

  it('gets the teacher only where it declares so, which excludes a cached one', async () => {
    const value = ({ teacherLogits }: TermContext) => mean(square(teacherLogits()));
    const silent = defineTerm({ key: 'silent', weight: 0, value });
    const regularizers = { consistencyWeight: 0.1 };
    await expect(train({ terms: [silent], regularizers })).rejects.toThrow(
      /define it with teacher: true$/,
    );
    const said = defineTerm({ key: 'said', weight: 0, teacher: true, value });
    await expect(train({ terms: [said], regularizers, cacheTeacher: true })).rejects.toThrow(
      /the term said reads more of the teacher than the cache holds/,
    );
    const part = { ...regularizers, teacherFraction: 0.5 };
    await expect(train({ terms: [said], regularizers: part })).rejects.toThrow(
      /teacherFraction: the term said reads the teacher on every row; leave teacherFraction out/,
    );
    await expect(train({ terms: { key: 'raw' } as never })).rejects.toThrow(
      /terms must be a list of terms that defineTerm\(\) returned/,
    );
  });

  it('is refused with a key that is taken, beside a custom loss, and with a value that is not one number', async () => {
    const term = (key: string) => defineTerm({ key, weight: 1, value: ({ logits }) => logits() });
    await expect(train({ terms: [term('svd')] })).rejects.toThrow('there is a term "svd" already');
    const loss = () => ({ loss: 0 as never });
    await expect(train({ terms: [term('x')], loss })).rejects.toThrow(/replaces all terms/);
    await expect(train({ terms: [term('x')] })).rejects.toThrow(/value of x must be one number/);
  });
});

it('a custom term of a classifier is added to the loss of its task', async () => {
  const rows = [
    { text: 'a good film', label: 1 },
    { text: 'a bad film', label: 0 },
  ];
  const data = await LabelledBatches.create(arrayRows(rows), tinyClassifierTokenizer(), {
    batchSize: 2,
  });
  const tuned = await AdapterModel.create(await tinyClassifier({ newHead: true }), { r: 2 });
  const norm = defineTerm({
    key: 'norm',
    weight: 0.5,
    hiddenStates: [0, 1],
    value: ({ logits, hiddenStates, problemType }) => {
      expect(problemType).toBe('single_label_classification');
      expect(hiddenStates).toHaveLength(2);
      return mean(square(logits()));
    },
  });
  const { last } = await new Trainer({ tuned, data, terms: [norm], maxSteps: 1 }).train();
  const { value, weight } = last?.terms?.norm ?? { value: 0, weight: 0 };
  expect(value).toBeGreaterThan(0);
  expect(last?.loss).toBeCloseTo((last?.taskLoss as number) + weight * (value as number), 6);
});

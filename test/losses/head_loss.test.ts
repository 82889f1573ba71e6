// BaLoraLoss (fused) against every golden case of heads, accumulation and positions, in f64 and f32.
import { describe, expect, it } from 'vitest';
import { BaLoraLoss } from '../../lib/losses/balora.ts';
import { type TermCounts, TermSums } from '../../lib/losses/term.ts';
import { indexSelect } from '../../lib/ops/index.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { goldenTensor } from '../support/fixtures.ts';
import {
  array,
  type Case,
  cases,
  type Dtype,
  dtypes,
  expectGrad,
  expectValue,
  gradOf,
  has,
  headSetting,
  identity,
  load,
  ofKind,
  plainValues,
  weightsOf,
} from '../support/golden_losses.ts';

const wholeBatch = (targets: Int32Array) => ({
  targets,
  cuSeqlens: Int32Array.of(0, targets.length),
});
const targetsOf = (c: Case): Int32Array =>
  Int32Array.from(array(c, 'c').data as BigInt64Array, Number);

async function expectTerms(
  terms: TermSums,
  {
    expected,
    totals,
    dtype,
  }: { expected: Record<string, number>; totals: TermCounts; dtype: Dtype },
) {
  const found = await terms.read(totals);
  for (const [term, value] of Object.entries(expected)) {
    expectValue(found[term as keyof typeof found] as number, value, dtype);
  }
}

describe.each(dtypes)('head in %s', (dtype) => {
  it.each(ofKind('nlg_head').flatMap((c) => [false, true].map((trained) => ({ ...c, trained }))))(
    '$name, head trained: $trained',
    async (c) => {
      const { softcap, ...options } = headSetting(c);
      const hidden = load(c, 'H', dtype, true);
      const weight = load(c, 'W', dtype, c.trained);
      const head = { weight, softcap, teacherWeight: has(c, 'Wt') ? load(c, 'Wt', dtype) : null };
      const loss = new BaLoraLoss(head, { ...options, chunkBytes: 3000 });
      const terms = new TermSums(loss.terms);
      const result = loss.compute({
        hidden,
        teacher: load(c, 'Ht', dtype),
        batch: wholeBatch(targetsOf(c)),
        weights: weightsOf(c.params.lambda),
      });
      terms.add(result);
      (result.loss as Tensor).backward();
      expectValue((result.loss as Tensor).itemSync(), c.value as number, dtype);
      expectGrad(gradOf(hidden), array(c, 'dH').data as Float64Array, dtype);
      if (c.trained) expectGrad(gradOf(weight), array(c, 'dW').data as Float64Array, dtype);
      else expect(weight.grad).toBeNull();
      await expectTerms(terms, {
        expected: c.terms as Record<string, number>,
        totals: result.counts,
        dtype,
      });
      loss.dispose();
    },
  );

  it.each(ofKind('nlg_head'))('each term alone: $name', (c) => {
    const { softcap, ...options } = headSetting(c);
    const teacherWeight = has(c, 'Wt') ? load(c, 'Wt', dtype) : null;
    const loss = new BaLoraLoss({ weight: load(c, 'W', dtype), softcap, teacherWeight }, options);
    const gradient = (weights: { consistency: number; diversity: number; svd: number }) => {
      const hidden = load(c, 'H', dtype, true);
      const teacherHidden = load(c, 'Ht', dtype);
      const batch = wholeBatch(targetsOf(c));
      (loss.compute({ hidden, teacher: teacherHidden, batch, weights }).loss as Tensor).backward();
      return gradOf(hidden);
    };
    const none = { consistency: 0, diversity: 0, svd: 0 };
    const task = gradient(none);
    expectGrad(task, array(c, 'dH_task').data as Float64Array, dtype);
    for (const term of ['consistency', 'diversity', 'svd'] as const) {
      // The weight is large, so that the term keeps its digits when the task loss is subtracted.
      const scale = 1000;
      const all = gradient({ ...none, [term]: scale });
      const alone = all.map((v, i) => (v - (task[i] as number)) / scale);
      expectGrad(alone, array(c, `dH_${term}`).data as Float64Array, dtype);
    }
  });
});

describe.each(dtypes)('accumulation in %s', (dtype) => {
  it.each(ofKind('nlg_accumulation'))('$name', async (c) => {
    const [total, channels] = array(c, 'H').shape as [number, number];
    const { softcap, ...options } = headSetting(c);
    const loss = new BaLoraLoss({ weight: load(c, 'W', dtype), softcap }, options);
    const terms = new TermSums(loss.terms);
    const targets = targetsOf(c);
    const gradients: number[] = [];
    let value = 0;
    let first = 0;
    for (const rows of c.params.counts) {
      const part = (name: string, requiresGrad = false): Tensor => {
        const source = array(c, name).data as Float32Array;
        const values = source.slice(first * channels, (first + rows) * channels);
        return goldenTensor({ shape: [rows, channels], data: values }, dtype, { requiresGrad });
      };
      const hidden = part('H', true);
      const result = loss.compute({
        hidden,
        teacher: part('Ht'),
        batch: wholeBatch(targets.slice(first, first + rows)),
        weights: weightsOf(c.params.lambda),
        window: { supervised: total, regularized: total },
      });
      terms.add(result);
      (result.loss as Tensor).backward();
      value += (result.loss as Tensor).itemSync();
      gradients.push(...gradOf(hidden));
      first += rows;
    }
    expectValue(value, c.value as number, dtype);
    expectGrad(gradients, array(c, 'dH').data as Float64Array, dtype);
    const totals = { supervised: total, regularized: total };
    await expectTerms(terms, { expected: c.terms as Record<string, number>, totals, dtype });
  });
});

type Mode = 'supervised' | 'non_padding' | 'label_aligned';
const modes: Mode[] = ['supervised', 'non_padding', 'label_aligned'];
interface PositionsCase extends Case {
  rows: Record<Mode, number[]>;
  targets: number[];
  modes: Record<Mode, Record<'total' | 'task' | 'consistency' | 'diversity' | 'svd', number>>;
}

/** The padded (B,T) case as rows: concatenated segments, or padded on the right with lengths. */
function asRows(c: Case, padded: boolean) {
  const [batch, length] = array(c, 'labels').shape as [number, number];
  const read = (name: string) => Array.from(array(c, name).data as BigInt64Array, Number);
  const mask = read('attention_mask');
  const labels = read('labels');
  const segment = has(c, 'segment') ? read('segment') : labels.map(() => 0);
  const places: number[] = []; // index of each row in the flat (B*T)
  const cuSeqlens = [0];
  const lengths: number[] = [];
  for (let b = 0; b < batch; b++) {
    let valid = 0;
    for (let t = 0; t < length; t++) {
      const at = b * length + t;
      if (!padded && !mask[at]) continue;
      if (t > 0 && mask[at - 1] && segment[at] !== segment[at - 1]) cuSeqlens.push(places.length);
      places.push(at);
      valid += mask[at] as number;
    }
    cuSeqlens.push(places.length);
    lengths.push(valid);
  }
  const targets = Int32Array.from(places, (_, n) =>
    cuSeqlens.includes(n + 1) ? -100 : (labels[places[n + 1] as number] as number),
  );
  return {
    places,
    batch: {
      targets,
      cuSeqlens: Int32Array.from(cuSeqlens),
      labels: Int32Array.from(places, (at) => labels[at] as number),
      ...(padded ? { lengths: Int32Array.from(lengths) } : {}),
    },
  };
}

/** The rows of a (B,T,C) array at the places, as (N,C). */
function rowsAt(c: Case, name: string, places: number[], dtype: Dtype, requiresGrad = false) {
  const channels = array(c, name).shape[2] as number;
  const source = array(c, name).data as Float32Array;
  const values = Float32Array.from(
    places.flatMap((at) => Array.from(source.slice(at * channels, (at + 1) * channels))),
  );
  return goldenTensor({ shape: [places.length, channels], data: values }, dtype, { requiresGrad });
}

describe.each(dtypes)('positions in %s', (dtype) => {
  const settings = (ofKind('nlg_positions') as PositionsCase[])
    .filter((c) => has(c, 'H'))
    .flatMap((c) => modes.map((mode) => ({ ...c, mode })))
    .flatMap((c) =>
      c.name === 'positions_right_padded'
        ? [
            { ...c, padded: false },
            { ...c, padded: true },
          ]
        : [{ ...c, padded: false }],
    );
  it.each(settings)('$name, $mode, padded $padded', async (c) => {
    const { places, batch } = asRows(c, c.padded);
    const { softcap, ...given } = headSetting(c);
    const options = { ...given, positions: c.mode };
    const loss = new BaLoraLoss({ weight: load(c, 'W', dtype), softcap }, options);
    const selected = loss.select(batch);
    expect(Array.from(selected.regularizedRows, (i) => places[selected.rows[i] as number])).toEqual(
      c.rows[c.mode],
    );
    expect(Array.from(batch.targets).filter((t) => t !== -100)).toEqual(c.targets);

    const hidden = rowsAt(c, 'H', places, dtype, true);
    const terms = new TermSums(loss.terms);
    const result = loss.compute({
      hidden,
      teacher: rowsAt(c, 'Ht', places, dtype),
      batch,
      weights: weightsOf(c.params.lambda),
    });
    terms.add(result);
    (result.loss as Tensor).backward();
    const { total, ...expected } = c.modes[c.mode];
    expectValue((result.loss as Tensor).itemSync(), total, dtype);
    await expectTerms(terms, { expected, totals: result.counts, dtype });

    const channels = hidden.shape[1] as number;
    const gradient = new Float64Array((array(c, 'H').data as Float32Array).length);
    gradOf(hidden).forEach((v, i) => {
      gradient[(places[Math.floor(i / channels)] as number) * channels + (i % channels)] = v;
    });
    expectGrad(gradient, array(c, `dH_${c.mode}`).data as Float64Array, dtype);
  });

  it('accepts the hidden states of only the selected rows', () => {
    const c = settings.find(({ name, mode }) => /padded/.test(name) && mode === 'label_aligned');
    const { places, batch } = asRows(c as Case, false);
    const { softcap, ...given } = headSetting(c as Case);
    const options = { ...given, positions: 'label_aligned' as const };
    const loss = new BaLoraLoss({ weight: load(c as Case, 'W', dtype), softcap }, options);
    const selected = loss.select(batch);
    expect(selected.regularized).not.toBeNull(); // task and regularizers use different rows
    const [h, ht] = ['H', 'Ht'].map((name, i) =>
      rowsAt(c as Case, name, places, dtype, i === 0),
    ) as [Tensor, Tensor];
    const chosen = (x: Tensor): Tensor => indexSelect(x, tensor(selected.rows));
    const run = (hidden: Tensor, teacherHidden: Tensor): number[] => {
      const weights = { consistency: 0.5, diversity: 0.25, svd: 0.125 };
      const result = loss.compute({ hidden, teacher: teacherHidden, batch, weights });
      (result.loss as Tensor).backward();
      const gradient = Array.from(gradOf(h));
      h.grad = null;
      const entropies = loss.teacherEntropyRows(teacherHidden, batch) as Tensor;
      return [(result.loss as Tensor).itemSync(), ...gradient, ...plainValues(entropies)];
    };
    expect(run(chosen(h), chosen(ht))).toEqual(run(h, ht));
    const wrong = rowsAt(c as Case, 'H', places.slice(2), dtype, true);
    expect(() => run(wrong, ht)).toThrow(/hidden states must be of all \d+ rows of the batch or/);
  });

  it('without a supervised token there are no loss and no terms', async () => {
    const c = cases.find(({ name }) => name === 'positions_none_supervised') as Case;
    const { batch, places } = asRows(c, false);
    const loss = new BaLoraLoss({ weight: identity(4, dtype) });
    const terms = new TermSums(loss.terms);
    const values = new Float32Array(places.length * 4);
    const hidden = goldenTensor({ shape: [places.length, 4], data: values }, dtype);
    const weights = { consistency: 1, diversity: 1, svd: 1 };
    const result = loss.compute({ hidden, teacher: hidden, batch, weights });
    expect(result).toMatchObject({
      loss: null,
      values: [],
      counts: { supervised: 0, regularized: 0 },
    });
    terms.add(result);
    expect(await terms.read(result.counts)).toEqual({
      task: 0,
      consistency: null,
      diversity: null,
      svd: null,
    });
  });
});

it('every language-model kind of the fixture has a test', () => {
  const kinds = new Set(cases.map(({ kind }) => kind).filter((kind) => kind.startsWith('nlg_')));
  expect([...kinds].sort()).toEqual([
    'nlg_accumulation',
    'nlg_consistency',
    'nlg_diversity',
    'nlg_head',
    'nlg_positions',
    'nlg_svd',
  ]);
});

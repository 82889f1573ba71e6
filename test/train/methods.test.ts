import { expect, it } from 'vitest';
import { resolveMethod } from '../../lib/train/methods.ts';
import { type RegularizerOptions, resolveRegularizers } from '../../lib/train/regularizers.ts';
import type { MethodName } from '../../lib/train/types.ts';

it('has the regularizers of the recipe for balora, and only the initialisation for pissa', () => {
  const balora = resolveMethod('balora');
  expect(balora.adapter?.initLoraWeights).toBe('pissa');
  expect(balora.regularizers).toMatchObject({
    consistencyWeight: 0.025,
    diversityWeight: 0.005,
    svdWeight: 0.005,
    temperature: 2,
    entropyTopK: 20,
    svdTopK: 10,
    consistencySchedule: 'cosine',
    regularizerSchedule: 'two_phase',
    regularizerWarmupRatio: 0.2,
    regularizerRampRatio: 0.05,
  });
  const classifier = resolveMethod('balora', { task: 'sequence-classification' });
  expect(classifier.regularizers).toMatchObject({
    ...{ consistencyWeight: 0.15, diversityWeight: 0.03, svdWeight: 0.03, svdTopK: 5 },
  });
  for (const name of ['lora', 'rslora', 'dora', 'pissa', 'full'] as const) {
    expect(resolveMethod(name).regularizers.consistencyWeight).toBe(0);
  }
  expect(resolveMethod('rslora').adapter?.useRslora).toBe(true);
  expect(resolveMethod('dora').adapter?.useDora).toBe(true);
  expect(resolveMethod('full').adapter).toBeNull();
});

it('overrides a preset by options, and ignores undefined ones', () => {
  const method = resolveMethod('balora', {
    adapter: { r: 16, initLoraWeights: 'pissa_niter_4' },
    regularizers: { svdWeight: 0, temperature: undefined as unknown as number },
  });
  expect(method.adapter).toMatchObject({ r: 16, initLoraWeights: 'pissa_niter_4' });
  expect(method.regularizers).toMatchObject({
    svdWeight: 0,
    diversityWeight: 0.005,
    temperature: 2,
  });
});

const adaptive = (bounds: RegularizerOptions) =>
  resolveRegularizers({ consistencyWeight: 0.1, consistencySchedule: 'adaptive', ...bounds });

it.each([
  [
    () => resolveMethod('dora2' as MethodName),
    /method must be one of lora, rslora, dora, .*, got "dora2" \(did you mean "dora"\?\)$/,
  ],
  [() => resolveMethod('constructor' as MethodName), /method must be one of/],
  [
    () => resolveMethod('full', { adapter: { r: 4 } }),
    /method full trains every weight and has no adapter; leave out r$/,
  ],
  [() => resolveRegularizers({ temperature: 0 }), /temperature must be a number > 0/],
  [() => resolveRegularizers({ svdWeight: -1 }), /svdWeight must be a number >= 0, got -1/],
  [() => resolveRegularizers({ entropyTopK: 1.5 }), /entropyTopK must be a whole number >= 0/],
  [() => resolveRegularizers({ svdTopK: 0 }), /svdTopK must be a whole number >= 1/],
  [() => resolveRegularizers({ positions: 'all' as never }), /positions must be one of supervised/],
  [
    () => resolveRegularizers({ consistencyWeight: 0.1, consistencyWeightMin: 0.01 }),
    /consistencyWeightMin needs consistencySchedule adaptive and a consistencyWeight > 0/,
  ],
  [
    () => resolveRegularizers({ consistencySchedule: 'adaptive', consistencyWeightMax: 0.01 }),
    /consistencyWeightMax needs consistencySchedule adaptive and a consistencyWeight > 0/,
  ],
  [() => adaptive({ consistencyWeightMin: -1 }), /consistencyWeightMin must be a number >= 0/],
  [
    () => adaptive({ consistencyWeightMin: 0.2 }),
    /consistencyWeightMin \(0\.2\) must not be above consistencyWeightMax \(0\.1\)/,
  ],
  [
    () => resolveRegularizers({ sdvWeight: 1 } as never),
    /regularizers: unknown option "sdvWeight" .did you mean "svdWeight"/,
  ],
])('refuses %s', (call, message) => {
  expect(call).toThrow(message);
});

import { expect, it } from 'vitest';
import { planText } from '../../lib/cli/plan_view.ts';

it('planText shows measured figures, and marks those that were not measured', () => {
  const data = {
    ...{ rows: 100, examples: 100, skipped: 0, truncated: 0 },
    ...{ tokens: 20_000, supervisedTokens: 12_000, longest: 412 },
  };
  const memory = {
    baseBytes: 2 ** 29,
    teacherBytes: 0,
    adapterBytes: 2 ** 20,
    optimizerBytes: 3 * 2 ** 20,
  };
  const plan = {
    ...{ totalSteps: 200, warmupSteps: 6, microBatchesPerEpoch: 13 },
    ...{ trainableParameters: 1_345_150, baseParameters: 134_515_008 },
    memory: { ...memory, activationBytes: null, totalBytes: null },
    ...{ memoryPlan: null, measuredTokens: null, secondsPerStep: null },
  };
  const bare = planText(plan, data, 'question -> answer');
  expect(bare).toMatch(
    /^data +100 examples \(question -> answer\), 20\.0 k tokens, 12\.0 k supervised/,
  );
  expect(bare).toMatch(/parameters +134\.5 M in the model, 1\.3 M trained \(1\.00 %\)/);
  expect(bare).toMatch(/^time +not measured$/m);
  const measured = planText(
    {
      ...plan,
      memory: { ...memory, activationBytes: 2 ** 28, totalBytes: 2 ** 30 },
      measuredTokens: 1640,
      secondsPerStep: 2.5,
    },
    data,
    'messages',
  );
  expect(measured).toMatch(
    /^memory +1\.00 GiB of tensors, without Node, code and scratch memory$/m,
  );
  expect(measured).toMatch(/256\.0 MiB \(1640 tokens; a longer one needs more\)/);
  const layers = { saved: 0, lean: 0, thin: 0, checkpointed: 30 };
  const memoryPlan = { rows: 1640, layers, bytes: 2 ** 29, overBudget: false, residentBytes: null };
  expect(planText({ ...plan, memoryPlan }, data, 'messages')).toMatch(
    /predicted peak +512\.0 MiB of the process, from a small forward pass$/m,
  );
  expect(measured).toMatch(/^time +8m20s \(2\.50 s per step, from one micro-batch\)$/m);
});

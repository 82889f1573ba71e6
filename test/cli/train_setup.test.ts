import { describe, expect, it } from 'vitest';
import { METHOD_OPTION_NAMES, PEFT_TYPES, typeNamed } from '../../lib/adapters/methods/registry.ts';
import { kTrainOptions, type TrainSettings } from '../../lib/cli/train_options.ts';
import { trainSetup } from '../../lib/cli/train_setup.ts';
import { defaultOf, type Option, type OptionTable } from '../../lib/options/option.ts';
import { TASK_NAMES } from '../../lib/tasks/list.ts';

const setup = (settings: Partial<TrainSettings> = {}) =>
  trainSetup({ model: 'm', data: 'd', ...settings });

/** A value of an option other than its default. */
function markOf(key: string): unknown {
  const option = (kTrainOptions as OptionTable)[key] as Option;
  const standard = defaultOf(option);
  if (option.placeholder === null) return standard !== true;
  const words = option.choices ?? option.placeholder.split('|');
  return [7, 0.5, ...words, 'x', ['x'], { x: 2 }].find(
    (value) => value !== standard && option.schema.safeParse(value).success,
  );
}

describe('trainSetup', () => {
  it('uses the preset of the method, overridden by flags', () => {
    const balora = setup();
    expect(balora.run.method).toBe('balora');
    expect(balora.adapter).toMatchObject({ method: 'balora', initLoraWeights: 'pissa' });
    expect(balora.run.regularizers).toMatchObject({ consistencyWeight: 0.025, svdWeight: 0.005 });
    const tuned = setup({ svdWeight: 0, initLoraWeights: 'pissa_niter_4', r: 4 });
    expect(tuned.run.regularizers).toMatchObject({ consistencyWeight: 0.025, svdWeight: 0 });
    expect(tuned.adapter).toMatchObject({ r: 4, initLoraWeights: 'pissa_niter_4' });
    const lora = setup({ method: 'lora' }).run;
    expect(lora.regularizers).toMatchObject({ consistencyWeight: 0, svdWeight: 0 });
    expect(setup({ method: 'full' }).adapter).toBeNull();
  });

  it('checks combinations of options as the library does, in any spelling of an initialisation', () => {
    const settings = { method: 'lora', loraBias: true, initLoraWeights: 'lora' } as const;
    expect(setup(settings as never).adapter).toMatchObject({ loraBias: true });
    expect(() => setup({ ...settings, initLoraWeights: 'pissa' })).toThrow(
      '--lora-bias needs --init-lora-weights true',
    );
  });

  it('passes on every option', () => {
    const values: Record<string, unknown> = {
      model: 'm',
      data: 'd',
      promptTemplate: '{q}',
      promptField: 'q',
      responseField: 'a',
      output: 'o',
    };
    // Options that the command itself uses.
    const own = [
      'model',
      'data',
      'evalData',
      'samplePrompts',
      'dtype',
      'device',
      'threads',
      'dryRun',
      'method',
      'adapter',
      'newHead',
      'calibrationBatches',
      'calibrationData',
      'calibrationSettings',
      'baseFormat',
      'baseOffload',
      'offloadFolder',
      'calibration',
      'ignoreKeys',
      'allowOtherBase',
    ];
    const labelled: Record<string, unknown> = {
      ...{ glue: 'cola', problemType: 'regression', variant: '2024', groupByLength: true },
      ...{ labelNames: ['x', 'y'], metricForBestModel: 'matthews' },
      ...{ textField: 'x', textPairField: 'x', labelField: 'x', numLabels: 3, headWarmupEpochs: 2 },
      ...{ labelNoise: 0.5, classImbalance: 2, rareClass: 'x' },
    };
    // Values of the options for which markOf finds no valid one.
    const marks: Record<string, unknown> = {
      ...{ initLoraWeights: 'gaussian', consistencyWeightMin: 0.01, layersToTransform: [1] },
      ...{ lrSchedulerType: 'linear', lrSchedulerKwargs: { numCycles: 2 } },
      ...{ dataWeights: [2], roleMap: { x: 'user' }, textNoiseKinds: ['drop'] },
    };
    // Options of a method with tensors of its own need its type.
    const ofTypes = PEFT_TYPES.flatMap((peftType) =>
      Object.values(typeNamed(peftType)?.keys ?? {}).flatMap((key) =>
        'option' in key && METHOD_OPTION_NAMES.includes(key.option as never)
          ? [[key.option, { method: 'lora', peftType }] as const]
          : [],
      ),
    );
    const needs: Record<string, Partial<TrainSettings>> = {
      ...Object.fromEntries(ofTypes),
      peftType: { method: 'lora' },
      loraBias: { method: 'lora' },
      consistencyWeightMin: { consistencySchedule: 'adaptive' },
      consistencyWeightMax: { consistencySchedule: 'adaptive' },
      layersPattern: { layersToTransform: [1] },
      textNoiseKinds: { textNoise: 0.5 },
      corruptionSeed: { textNoise: 0.5 },
      rareClass: { classImbalance: 3 },
    };
    const handedOn = (settings: Partial<TrainSettings>) => {
      const { run, ...rest } = setup(settings);
      return JSON.stringify({ ...rest, run: { ...run, config: null } });
    };
    for (const key of Object.keys(kTrainOptions)) {
      if (own.includes(key) || key in values || key in labelled) continue;
      if (['task', 'maxSourceLength', 'maxTargetLength'].includes(key)) continue;
      const given = { ...values, ...needs[key] };
      expect(handedOn({ ...given, [key]: marks[key] ?? markOf(key) }), key).not.toBe(
        handedOn(given),
      );
    }
    const seq2seq = { task: 'seq2seq-lm', output: 'o' } as const;
    for (const key of ['maxSourceLength', 'maxTargetLength'] as const) {
      expect(handedOn({ ...seq2seq, [key]: 7 }), key).not.toBe(handedOn(seq2seq));
    }
    const classifier: Partial<TrainSettings> = {
      task: 'sequence-classification',
      output: 'o',
      evalData: 'e',
    };
    for (const [key, value] of Object.entries(labelled)) {
      const given = { ...classifier, ...needs[key] };
      expect(handedOn({ ...given, [key]: value }), key).not.toBe(handedOn(given));
    }
  });

  it('sets the weights, the adapter and the options for classification', () => {
    const { run, adapter, examples } = setup({ task: 'sequence-classification', maxLength: 64 });
    expect(run.regularizers).toMatchObject({
      consistencyWeight: 0.15,
      diversityWeight: 0.03,
      svdWeight: 0.03,
      svdTopK: 5,
      variant: 'iclr',
    });
    expect(adapter?.taskType).toBe('SEQ_CLS');
    expect(examples.evalData).toEqual({ maxLength: 64, batchSize: 8, shuffle: false });
    expect(() => setup({ labelField: 'x' })).toThrow('--label-field needs --task sequence-cl');
    expect(() => setup({ task: 'sequence-classification', packing: true })).toThrow(
      '--packing has no meaning for --task sequence-classification',
    );
    expect(() => setup({ task: 'sequence-classification', positions: 'non_padding' })).toThrow(
      'positions has no meaning for sequence-classification',
    );
    expect(() => setup({ variant: '2024' })).toThrow('variant has no meaning for causal-lm');
    expect(() => setup({ maxSourceLength: 9 })).toThrow(
      '--max-source-length needs --task seq2seq-lm',
    );
    expect(() => setup({ task: 'seq2seq-lm', maxLength: 9 })).toThrow(
      '--max-length has no meaning for --task seq2seq-lm',
    );
  });

  it('keeps the settings for run/config.json, in the spelling of a configuration file', () => {
    expect(setup({ loraAlpha: 4 }).run.config.values).toMatchObject({
      model: 'm',
      'lora-alpha': 4,
      method: 'balora',
      'per-device-train-batch-size': 8,
    });
  });

  it('evaluates in file order and without packing', () => {
    const { data, evalData } = setup({ packing: true, maxLength: 64, promptField: 'q' }).examples;
    expect(evalData).toEqual({ batchSize: 8, maxLength: 64, shuffle: false, promptField: 'q' });
    expect(data).toMatchObject({ packing: true, shuffle: true, seed: 42 });
    const sizes = { perDeviceTrainBatchSize: 2, perDeviceEvalBatchSize: 5 };
    for (const task of TASK_NAMES) {
      expect(setup({ ...sizes, task }).examples).toMatchObject({
        data: { batchSize: 2 },
        evalData: { batchSize: 5 },
      });
    }
  });

  it('refuses what excludes each other', () => {
    expect(() => setup({ adapter: 'a', r: 4 })).toThrow(
      '--r cannot be set with --adapter, which brings',
    );
    expect(() => setup({ adapter: 'a', method: 'full' })).toThrow(/merge it into the model first/);
    expect(() => setup({ method: 'full', r: 4 })).toThrow(/method full trains every weight/);
    expect(() => setup({ resume: true })).toThrow(/--resume needs --output/);
  });
});

// The adapter in a checkpoint of a run is the one that was trained: it computes the same, is exported to the same bytes, and is checked
// as strictly as a PEFT folder.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import { ArgumentError, FormatError, UnsupportedError } from '../../lib/errors.ts';
import { evaluate } from '../../lib/eval/evaluate.ts';
import { writeChecksums } from '../../lib/io/checksums.ts';
import { loadSafetensors, saveSafetensors } from '../../lib/io/safetensors.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { mul, randn, zeros } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { fixturePath } from '../support/fixtures.ts';
import { tinyClassifier, tinyLabelled } from '../support/tiny_classifier.ts';
import { tinyBatches, tinySource } from '../support/tiny_model.ts';

const kModel = fixturePath('architectures/llama-untied-gqa/model');
const batches = tinyBatches({ count: 2, rows: 12, vocabulary: 96 });

let root: string;
let folder: string;
let count = 0;
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'balora-checkpoint-folder-'));
  folder = join(root, '0');
});
afterEach(() => {
  folder = join(root, `${++count}`);
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

const load = (options: { dtype?: 'f32' | 'bf16'; trainable?: boolean } = {}) =>
  AutoModelForCausalLM.fromPretrained(kModel, options);

/** Trains three steps with a checkpoint after each. */
const train = (tuned: TunedModel, more: Partial<TrainerOptions> = {}) =>
  new Trainer({
    ...{ tuned, data: tinySource(batches), output: folder, learningRate: 0.02, maxSteps: 3 },
    ...{ lrSchedulerType: 'constant', saveSteps: 1, saveTotalLimit: 9 },
    ...more,
  }).train();

const checkpoint = (step: number) => join(folder, 'run/checkpoints', `step-${step}`);

const filesOf = (path: string) =>
  ['adapter_config.json', 'adapter_model.safetensors'].map((name) =>
    readFileSync(join(path, name), 'base64'),
  );

const kStarts: [string, LoraConfigInput][] = [
  ['lora', {}],
  ['pissa', { initLoraWeights: 'pissa', rankPattern: { q_proj: 2 }, alphaPattern: { q_proj: 3 } }],
  ['qpissa', { initLoraWeights: 'qpissa', rankPattern: { q_proj: 2 }, useRslora: true }],
  ['loftq', { initLoraWeights: 'loftq_iter_3' }],
  ['dora on pissa', { useDora: true, initLoraWeights: 'pissa' }],
  ['lora with biases', { loraBias: true }],
  ['modules trained whole', { modulesToSave: ['norm'], layersToTransform: [1] }],
  [
    'a start function',
    {
      initLoraWeights: (modules) =>
        modules.map(({ r, inFeatures, outFeatures, seed }) => ({
          a: mul(randn([r, inFeatures], { seed: seed('A') }), 0.1),
          b: mul(randn([outFeatures, r], { seed: seed('B') }), 0.1),
          fromWeight: true,
        })),
    },
  ],
];

describe.each(kStarts)('the adapter in a checkpoint: %s', (_, config) => {
  it('is that of its step, and is exported as the run itself exports it', async () => {
    const tuned = await AdapterModel.create(await load(), { r: 4, loraAlpha: 8, ...config });
    const losses: number[] = [];
    await train(tuned, {
      callbacks: [
        async (event) => {
          if (event.type === 'checkpoint') losses.push((await evaluate(tuned, batches)).loss);
        },
      ],
    });
    expect(new Set(losses).size).toBe(3);
    for (const step of [1, 2, 3]) {
      const read = await AdapterModel.fromPretrained(await load(), checkpoint(step));
      expect(read.warnings).toEqual(
        step === 3
          ? []
          : [`${checkpoint(step)}: this is the adapter of step ${step} of 3 of a run`],
      );
      const found = await evaluate(read, batches);
      expect(found.loss).toBeCloseTo(losses[step - 1] as number, 6);
      expect(found.kl).toBeGreaterThan(0);
      if (step < 3) continue;
      const again = join(root, `again-${count}`);
      await read.savePretrained(again);
      expect(filesOf(again)).toEqual(filesOf(folder));
    }
  });
});

describe('a checkpoint', () => {
  it('is loaded beside other adapters, and trained further', async () => {
    const tuned = await AdapterModel.create(await load(), { r: 4, method: 'pissa' });
    await train(tuned);
    const { loss } = await evaluate(tuned, batches);
    await tuned.loadAdapter(checkpoint(1), 'early');
    tuned.setAdapter('early');
    expect((await evaluate(tuned, batches)).loss).toBeGreaterThan(loss);
    folder = join(root, 'further');
    const { last } = await train(tuned, { maxSteps: 2 });
    expect(last?.step).toBe(2);
  });

  it('of a classifier has its trained head', async () => {
    const data = await tinyLabelled(6, { batchSize: 3 });
    const tuned = await AdapterModel.create(await tinyClassifier(), { r: 2 });
    await new Trainer({
      ...{ tuned, data, output: folder, learningRate: 0.02, maxSteps: 2 },
    }).train();
    const read = await AdapterModel.fromPretrained(await tinyClassifier(), checkpoint(2));
    const again = join(root, 'classifier');
    await read.savePretrained(again);
    expect(filesOf(again)).toEqual(filesOf(folder));
  });

  it('on another base gives a warning', async () => {
    await train(await AdapterModel.create(await load(), { r: 2 }));
    const other = await load();
    other.stored = null; // as if changed in memory
    const read = await AdapterModel.fromPretrained(other, checkpoint(3));
    expect(read.warnings).toEqual([
      expect.stringMatching(
        /step-3: the adapter was trained on another base: .* is "llama, .* memory \w{16}", and that was "llama, .* files \w{16}"$/,
      ),
    ]);
  });

  it('of a pair on a residual is refused on another base, and has no teacher on its own', async () => {
    const pissa = await AdapterModel.create(await load(), { r: 2, initLoraWeights: 'pissa' });
    const pair = join(root, 'pair');
    await pissa.savePretrained(pair, { form: 'residual' });
    const residual = () => AutoModelForCausalLM.fromPretrained(join(pair, 'residual'));
    const tuned = await AdapterModel.fromPretrained(await residual(), pair);
    await train(tuned);
    const expected = (await evaluate(tuned, batches)).loss;
    await expect(AdapterModel.fromPretrained(await load(), checkpoint(3))).rejects.toThrow(
      ArgumentError,
    );
    const read = await AdapterModel.fromPretrained(await residual(), checkpoint(3));
    expect(read.hasTeacher).toBe(false);
    expect(read.warnings).toEqual([
      expect.stringMatching(/a checkpoint does not hold the first pairs .*there is no KL/),
    ]);
    expect((await evaluate(read, batches)).loss).toBeCloseTo(expected, 6);
  });

  it('that is damaged is refused by the file', async () => {
    await train(await AdapterModel.create(await load(), { r: 2 }));
    const path = join(checkpoint(2), 'state.safetensors');
    const bytes = readFileSync(path);
    bytes[bytes.length - 5] = (bytes[bytes.length - 5] as number) ^ 1;
    writeFileSync(path, bytes);
    const damaged = AdapterModel.fromPretrained(await load(), checkpoint(2));
    await expect(damaged).rejects.toThrow(
      /step-2\/state\.safetensors: its checksum is not the one/,
    );
    const state = join(checkpoint(3), 'state.json');
    const json = JSON.parse(readFileSync(state, 'utf8'));
    for (const [change, message] of [
      [null, /step-3\/state\.json: is not JSON: /],
      [{ format: 3 }, /step-3\/state\.json: format: /],
      [
        { identity: { ...json.identity, adapter: { r: 'many' } } },
        /identity\.adapter: .*r must be/,
      ],
    ] as const) {
      writeFileSync(state, change === null ? '{' : JSON.stringify({ ...json, ...change }));
      await writeChecksums(checkpoint(3), ['state.json', 'state.safetensors']);
      const odd = AdapterModel.fromPretrained(await load(), checkpoint(3));
      await expect(odd).rejects.toThrow(FormatError);
      await expect(odd).rejects.toThrow(message);
    }
  });

  it('that cannot be loaded leaves no tensors behind', async () => {
    const refused = async (model: CausalLM, path: string, message: RegExp): Promise<void> => {
      await collectGarbage();
      await synchronize();
      const before = memoryStats().liveTensors;
      await expect(AdapterModel.fromPretrained(model, path)).rejects.toThrow(message);
      await synchronize();
      expect(memoryStats().liveTensors).toBe(before);
    };
    const kept = { modulesToSave: ['norm'], layersToTransform: [1] };
    await train(await AdapterModel.create(await load(), { r: 2, method: 'pissa', ...kept }));
    const tensors = join(checkpoint(2), 'state.safetensors');
    const file = await loadSafetensors(tensors);
    const [first] = Object.keys(file.tensors).filter((name) => /^tuned.*lora_A$/.test(name));
    const wrong = (changes: Record<string, Tensor | undefined>) => async () => {
      const all = Object.entries({ ...file.tensors, ...changes });
      const given = all.filter((entry): entry is [string, Tensor] => entry[1] !== undefined);
      await saveSafetensors(tensors, Object.fromEntries(given), file.metadata);
      await writeChecksums(checkpoint(2), ['state.json', 'state.safetensors']);
    };
    const other = await load();
    for (const [change, message] of [
      [wrong({ [first as string]: undefined }), /has no lora_A/],
      [
        wrong({ 'tuned/nowhere.lora_A': zeros([2, 8]), 'tuned/nowhere.lora_B': zeros([8, 2]) }),
        /no linear module/,
      ],
    ] as const) {
      await change();
      await refused(other, checkpoint(2), message);
    }
  });

  it('of full fine-tuning has no adapter', async () => {
    await train(new FullModel(await load({ trainable: true })));
    const none = AdapterModel.fromPretrained(await load(), checkpoint(3));
    await expect(none).rejects.toThrow(UnsupportedError);
    await expect(none).rejects.toThrow(
      /step-3 is a checkpoint of the method full, which has no adapter/,
    );
  });
});

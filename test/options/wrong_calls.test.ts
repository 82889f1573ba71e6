// Calls as newcomers write them, with the names that PEFT, transformers and mlx-lm have: each is refused, with a message that names what to
// write instead. Twenty of the library, twenty of the command line.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import {
  AdapterModel,
  ArgumentError,
  AutoModelForCausalLM,
  arrayRows,
  Batches,
  demoCheckpoint,
  evaluate,
  generate,
  Tokenizer,
  Trainer,
} from '../../lib/index.ts';
import { AdamW } from '../../lib/optim/index.ts';
import { kHomes } from '../../lib/options/elsewhere.ts';
import { camel } from '../../lib/options/option.ts';
import { balora } from '../support/run_cli.ts';

const model = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
const tokenizer = await Tokenizer.fromPretrained(demoCheckpoint);
const plain = [{ prompt: 'a', response: 'b' }];
const data = await Batches.create(arrayRows(plain), tokenizer, { promptTemplate: 'none' });
const tuned = await AdapterModel.create(model, { r: 2, loraAlpha: 2 });
const other = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
const folder = await mkdtemp(join(tmpdir(), 'balora-wrong-calls-'));
afterAll(async () => {
  tuned.dispose();
  for (const made of [model, other]) made.dispose();
  await rm(folder, { recursive: true });
});

/** A Tokenizer as another installation of the package makes them. */
const foreign = new (class Tokenizer {})();

/** A value that only a program in JavaScript passes. */
const any = (value: unknown) => value as never;
const train = (options: object) => new Trainer(any({ tuned, data, ...options }));
const adapt = (config: object) => AdapterModel.create(other, any(config));

const kLibrary: [call: string, wrong: () => unknown, message: RegExp][] = [
  ['Trainer: lr', () => train({ lr: 1e-3 }), /^Trainer: .*\blr\b.*learningRate/],
  ['Trainer: max_steps', () => train({ max_steps: 3 }), /^Trainer: .*max_steps.*maxSteps/],
  ['Trainer: outputDir', () => train({ outputDir: 'x' }), /^Trainer: .*outputDir.*\boutput\b/],
  [
    'Trainer: per_device_train_batch_size',
    () => train({ per_device_train_batch_size: 4 }),
    /^Trainer: .*per_device_train_batch_size.*batchSize belongs to Batches.create/,
  ],
  ['Trainer: warmup_ratio', () => train({ warmup_ratio: 0.1 }), /warmup_ratio.*warmupSteps/],
  [
    'Trainer: gradient_checkpointing',
    () => train({ gradient_checkpointing: true }),
    /gradient_checkpointing.*memoryBudget/,
  ],
  ['Trainer: report_to', () => train({ report_to: 'wandb' }), /report_to.*callbacks/],
  ['Trainer: iters', () => train({ iters: 100 }), /iters.*maxSteps/],
  ['Trainer: consistencyWeight', () => train({ consistencyWeight: 0.5 }), /regularizers/],
  [
    'fromPretrained: torch_dtype',
    () => AutoModelForCausalLM.fromPretrained(demoCheckpoint, any({ torch_dtype: 'bf16' })),
    /^fromPretrained: .*torch_dtype.*\bdtype\b/,
  ],
  [
    'fromPretrained: load_in_4bit',
    () => AutoModelForCausalLM.fromPretrained(demoCheckpoint, any({ load_in_4bit: true })),
    /^fromPretrained: .*load_in_4bit.*baseFormat.*nf4/,
  ],
  [
    'Batches.create: max_length',
    () => Batches.create(arrayRows(plain), tokenizer, any({ max_length: 64 })),
    /max_length.*maxLength/,
  ],
  [
    'Batches.create: a path',
    () => Batches.create(any('rows.jsonl'), tokenizer),
    /rows must be .*openRows\(\)/,
  ],
  ['AdapterModel.create: lora_r', () => adapt({ lora_r: 8 }), /lora_r.*"r"/],
  [
    'AdapterModel.create: method lokr',
    () => adapt({ method: 'lokr' }),
    /\blokr is not offered; take lora\b/,
  ],
  [
    'AdapterModel.create: other target modules',
    () => adapt({ targetModules: ['query', 'value'] }),
    /query.*names that exist: (?!.*lm_head).*q_proj/,
  ],
  [
    'generate: max_tokens',
    () => generate(model, any({ ids: [1], max_tokens: 5 })),
    /^generate: .*max_tokens.*maxNewTokens/,
  ],
  [
    "generate: another copy's tokenizer",
    () => generate(model, any({ prompt: 'a', tokenizer: foreign })),
    /tokenizer must be a Tokenizer, got a Tokenizer of another copy of balora/,
  ],
  [
    'evaluate: batch_size',
    () => evaluate(tuned, data.batches(0), any({ batch_size: 4 })),
    /batchSize belongs to Batches.create/,
  ],
  ['AdamW: weight_decay', () => new AdamW([], any({ weight_decay: 0.1 })), /weightDecay/],
];

const kTrain = ['train', '--model', demoCheckpoint, '--data', 'rows.jsonl'];
const file = async (text: string) => {
  const path = join(folder, 'run.yaml');
  await writeFile(path, text);
  return ['train', '--config', path];
};

const kCommands: [args: string[] | (() => Promise<string[]>), message: RegExp][] = [
  [[...kTrain, '--lr', '1e-3'], /--lr\b.*--learning-rate/],
  [[...kTrain, '--max_steps', '3'], /--max_steps.*--max-steps/],
  [[...kTrain, '--output_dir', 'x'], /--output_dir.*--output\b/],
  [[...kTrain, '--batch-size', '4'], /--batch-size.*--per-device-train-batch-size/],
  [[...kTrain, '--warmup-ratio', '0.1'], /--warmup-ratio.*--warmup-steps/],
  [[...kTrain, '--load_in_4bit'], /--load_in_4bit.*--base-format nf4/],
  [[...kTrain, '--report-to', 'wandb'], /--report-to.*metrics\.jsonl/],
  [[...kTrain, '--torch_dtype', 'bfloat16'], /--torch_dtype.*--dtype\b/],
  [[...kTrain, '--max_length', '64'], /--max_length.*--max-length/],
  [[...kTrain, '--lora_r', '8'], /--lora_r.*--r\b/],
  [[...kTrain, '--iters', '100'], /--iters.*--max-steps/],
  [[...kTrain, '--gradient_checkpointing', 'true'], /--gradient_checkpointing.*--memory-budget/],
  [[...kTrain, '--method', 'lokr'], /\blokr is not offered; take lora\b/],
  [[...kTrain, '--dtype', 'float16'], /--dtype float16 .*take bf16/],
  [[...kTrain, '--packing', 'true'], /--packing takes no value/],
  [[...kTrain, '--target-modules', 'q_proj', 'v_proj'], /write --target-modules q_proj,v_proj$/m],
  [() => file('lora_rank: 8\n'), /lora_rank.*\br\b/],
  [() => file('report_to: wandb\n'), /report_to.*metrics\.jsonl/],
  [
    ['generate', '--model', demoCheckpoint, 'Hello'],
    /unexpected argument "Hello".*--prompt "Hello"/,
  ],
  [['finetune', '--model', demoCheckpoint], /finetune.*train/],
];

describe('a wrong call of the library names what to write', () => {
  it.each(kLibrary)('%s', async (_, wrong, message) => {
    const failure = (async () => wrong())();
    await expect(failure).rejects.toThrow(ArgumentError);
    await expect(failure).rejects.toThrow(message);
  });

  const homes = Object.entries(kHomes).flatMap(([home, keys]) =>
    keys.split(' ').map((key) => [camel(key), home] as const),
  );
  it.each(homes)('%s belongs to %s', async (key, home) => {
    const calls: Record<string, (options: object) => unknown> = {
      'the options of a Trainer': train,
      'regularizers, an option of a Trainer': (regularizers) => train({ regularizers }),
      'Batches.create()': (options) => Batches.create(plain, tokenizer, options),
      'AdapterModel.create()': adapt,
      'AutoModelForCausalLM.fromPretrained()': (options) =>
        AutoModelForCausalLM.fromPretrained(demoCheckpoint, options),
      'generate()': (options) => generate(model, { ids: [1], ...options }),
    };
    const failure = (async () => calls[home]?.({ [key]: Symbol('x') }))();
    await expect(failure).rejects.toThrow(ArgumentError);
    await expect(failure).rejects.not.toThrow(/unknown option/);
  });
});

it('an option that none is like is refused with the known ones, at most twelve', async () => {
  expect(() => train({ xyzzyxyz: 1 })).toThrow(/"xyzzyxyz"; known: (\w+, ){11}\w+ and \d+ more$/);
  for (const name of ['constructor', '__proto__', 'toString']) {
    const options = JSON.parse(`{"${name}": 1}`) as object;
    expect(() => generate(model, any({ ids: [1], ...options }))).toThrow(ArgumentError);
    expect(() => train(options)).toThrow(ArgumentError);
  }
});

describe('a wrong command names what to write', () => {
  it.each(kCommands)('%j', async (given, message) => {
    const { code, err } = await balora(typeof given === 'function' ? await given() : given);
    expect(err).toMatch(message);
    expect(code).toBe(2);
  });
});

/**
 * llama.cpp reads what is exported: a base in F32 with a GGUF adapter and the merged model, each with the logits and the greedy tokens
 * of `generate`; and the quantised files, whose divergence is that of their rounding.
 */
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { type ExportTargetName, exportModel, exportTarget } from '../../lib/export/registry.ts';
import type { OutType } from '../../lib/export/target.ts';
import { generate } from '../../lib/generate/generate.ts';
import { openSession } from '../../lib/generate/open_session.ts';
import { AutoModelForCausalLM, demoCheckpoint } from '../../lib/models/index.ts';
import { noGrad } from '../../lib/tensor.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { divergence, type LlamaCpp, noLlamaCpp, openLlamaCpp } from '../support/llama_cpp.ts';
import { balora } from '../support/run_cli.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { disturb } from '../support/tiny_adapters.ts';

const kTokens = 24;

let folder: string;
let missing: string | null;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-llama-cpp-'));
  missing = await noLlamaCpp();
});
afterAll(() => rm(folder, { recursive: true }));

interface Exported {
  readonly tuned: AdapterModel;
  readonly tokenizer: Tokenizer;
}

async function write(
  { tuned, tokenizer }: Exported,
  to: ExportTargetName,
  outtype: OutType,
): Promise<string> {
  const output = join(folder, `${to}-${outtype}-${Math.random()}.gguf`);
  const input = { tuned, tokenizer, adapter: folder, outtype, warn: () => {} };
  await exportModel(exportTarget(to), input, output);
  return output;
}

/** Logits after the last id, by the model with its adapter. */
async function ownLogits({ tuned }: Exported, ids: readonly number[]): Promise<Float32Array> {
  const session = await openSession(tuned.model, { run: noGrad, maxLength: 200 } as never);
  const [started] = await session.prefill([Int32Array.from(ids)]);
  session.dispose();
  return (started as { logits: Float32Array }).logits;
}

async function ownGreedy(
  { tuned, tokenizer }: Exported,
  ids: readonly number[],
): Promise<number[]> {
  const settings = { maxNewTokens: kTokens, doSample: false };
  const [result] = await generate(tuned, { tokenizer, ids: Int32Array.from(ids), ...settings })
    .result;
  return [...(result?.tokens ?? [])];
}

async function expectSame(llama: LlamaCpp, made: Exported, texts: readonly string[]) {
  for (const text of texts) {
    const ids = made.tokenizer.encode(text);
    expect(llama.tokenize(text), text).toEqual(ids);
    const own = await ownLogits(made, ids);
    const other = await llama.logits(ids);
    expect(other).toHaveLength(own.length);
    expect(divergence(own, other), text).toBeLessThan(1e-5);
    const greedy = await ownGreedy(made, ids);
    expect(greedy.length).toBeGreaterThan(0);
    expect((await llama.greedy(ids, kTokens)).slice(0, greedy.length), text).toEqual(greedy);
  }
}

describe('the demo model', () => {
  const kTexts = ['Call me Ishmael. Some years', 'The whale, ', 'Émile — 1851!\n\nAnd then'];
  const made = async (deviation: number): Promise<Exported> => {
    const model = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
    const tuned = await AdapterModel.create(model, { r: 4, loraAlpha: 8 });
    if (deviation > 0) disturb(tuned, 1, deviation);
    return { tuned, tokenizer: await Tokenizer.fromPretrained(demoCheckpoint) };
  };

  it('merged, and as a base with the adapter beside it, has our logits and tokens', async ({
    skip,
  }) => {
    if (missing !== null) skip(missing);
    const tuned = await made(0.08);
    const base = await made(0);
    const file = await write(base, 'gguf', 'f32');
    const ids = tuned.tokenizer.encode(kTexts[0] as string);
    // The adapter has an effect that a mistake could not hide in.
    expect(divergence(await ownLogits(tuned, ids), await ownLogits(base, ids))).toBeGreaterThan(
      0.05,
    );
    for (const [model, adapter] of [
      [await write(tuned, 'gguf', 'f32'), undefined],
      [file, await write(tuned, 'gguf-lora', 'f32')],
    ] as const) {
      const llama = await openLlamaCpp(model, adapter);
      await expectSame(llama, tuned, kTexts);
      await llama.dispose();
    }
  });

  it('in other types is read, and differs by their rounding', async ({ skip }) => {
    if (missing !== null) skip(missing);
    const tuned = await made(0.08);
    const ids = tuned.tokenizer.encode(kTexts[0] as string);
    const own = await ownLogits(tuned, ids);
    for (const [outtype, most] of [
      ['f16', 1e-4],
      ['bf16', 1e-2],
      ['q8_0', 1e-2],
      ['q4_k_m', 0.2],
    ] as const) {
      const llama = await openLlamaCpp(await write(tuned, 'gguf', outtype));
      const kl = divergence(own, await llama.logits(ids));
      expect(kl, outtype).toBeLessThan(most);
      expect(kl, outtype).toBeGreaterThan(0);
      expect(await llama.greedy(ids, kTokens)).not.toHaveLength(0);
      await llama.dispose();
    }
  });
});

describe('a rotary embedding of type yarn', () => {
  const kText = 'Call me Ishmael. Some years ago - never mind how long precisely - having little';

  it.for([
    ['with the default attention factor', {}],
    ['with one of its own', { attention_factor: 1.5 }],
  ] as const)('%s has our logits in llama.cpp, and is read back', async ([, own], { skip }) => {
    const base = join(folder, `yarn-${Object.keys(own).length}`);
    await cp(demoCheckpoint, base, { recursive: true });
    const path = join(base, 'config.json');
    const config = JSON.parse(await readFile(path, 'utf8'));
    const scaling = {
      rope_type: 'yarn',
      factor: 8,
      original_max_position_embeddings: 64,
      ...own,
    };
    await writeFile(path, JSON.stringify({ ...config, rope_scaling: scaling }));
    const tokenizer = await Tokenizer.fromPretrained(base);
    const made = async (source: string) => {
      const model = await AutoModelForCausalLM.fromPretrained(source);
      return { tuned: await AdapterModel.create(model, { r: 2 }), tokenizer };
    };
    const yarn = await made(base);
    const ids = tokenizer.encode(kText.repeat(6)).slice(0, 200);
    const file = await write(yarn, 'gguf', 'f32');
    const logits = await ownLogits(yarn, ids);
    expect(divergence(logits, await ownLogits(await made(demoCheckpoint), ids))).toBeGreaterThan(
      0.01,
    );
    expect(divergence(logits, await ownLogits(await made(file), ids))).toBeLessThan(1e-9);
    if (missing !== null) skip(missing);
    const llama = await openLlamaCpp(file);
    expect(divergence(logits, await llama.logits(ids))).toBeLessThan(1e-7);
    await llama.dispose();
  });
});

const kSmolLm = 'models/smollm2-135m-instruct-gguf';
const kRows = 'data/gsm8k/train.jsonl';

describeShared('SmolLM2 tuned on GSM8K', [kSmolLm, kRows], () => {
  it('answers in llama.cpp with the tokens of generate', { timeout: 1_200_000 }, async ({
    skip,
  }) => {
    if (missing !== null) skip(missing);
    const adapter = join(folder, 'tuned');
    const { code, err } = await balora([
      ...[
        'train',
        '--model',
        sharedPath(kSmolLm),
        '--data',
        sharedPath(kRows),
        '--output',
        adapter,
      ],
      ...['--method', 'pissa', '--r', '4', '--lora-alpha', '4', '--max-steps', '2'],
      ...['--per-device-train-batch-size', '2', '--max-length', '160', '--learning-rate', '1e-3'],
      ...['--lr-scheduler-type', 'constant', '--warmup-steps', '0'],
    ]);
    expect(code, err).toBe(0);
    const model = await AutoModelForCausalLM.fromPretrained(sharedPath(kSmolLm));
    const tokenizer = await Tokenizer.fromPretrained(sharedPath(kSmolLm));
    const zero = await AdapterModel.create(model, { r: 1, targetModules: ['q_proj'] });
    const base = await write({ tuned: zero, tokenizer }, 'gguf', 'f32');
    zero.dispose();
    const tuned = await AdapterModel.fromPretrained(model, adapter);
    const made = { tuned, tokenizer };
    const kTexts = [
      'A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total does it take?',
      '### Instruction:\nWhat is 3 times 12?\n\n### Response:',
    ];
    for (const [path, lora] of [
      [base, await write(made, 'gguf-lora', 'f32')],
      [await write(made, 'gguf', 'f32'), undefined],
    ] as const) {
      const llama = await openLlamaCpp(path, lora);
      await expectSame(llama, made, kTexts);
      await llama.dispose();
    }
  });
});

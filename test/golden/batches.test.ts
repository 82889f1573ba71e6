/** The batches of the reference runs, reproduced from the raw data. */
import { readFileSync } from 'node:fs';
import { gguf } from '@huggingface/gguf';
import { beforeAll, expect, it } from 'vitest';
import { Batches } from '../../lib/data/batches.ts';
import type { Batch } from '../../lib/data/collate.ts';
import { JsonlFile } from '../../lib/data/jsonl.ts';
import type { RowSource } from '../../lib/data/rows.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { readInt32Tensors } from '../support/read_safetensors.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kGguf = 'models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf';
const kTrain = 'golden/smollm2/train.json';
const kData = 'data/gsm8k/train.jsonl';

interface Run {
  config: { first_row: number; micro_batch: number; max_length: number };
  steps: { tokens: number; supervised_tokens: number }[];
}

/** `length` rows of a source, from `first` on. */
function from(rows: RowSource, first: number, length: number): RowSource {
  return {
    length,
    row: (i) => rows.row(first + i),
    where: (i) => rows.where(first + i),
    close: async () => {},
  };
}

/** Targets before the shift, as the golden files have them. */
function unshifted(batch: Batch): number[] {
  const targets = new Array<number>(batch.targets.length).fill(-100);
  batch.targets.forEach((target, n) => {
    if (target !== -100) targets[n + 1] = target;
  });
  return targets;
}

describeShared('reference batches', [kGguf, kTrain, kData], () => {
  let tokenizer: Tokenizer;
  let rows: JsonlFile;
  beforeAll(async () => {
    const { metadata } = await gguf(sharedPath(kGguf), { allowLocalFile: true });
    tokenizer = Tokenizer.fromGguf(metadata as unknown as Record<string, unknown>);
    rows = await JsonlFile.open(sharedPath(kData));
  });

  it('indexes every row', async () => {
    expect(rows.length).toBe(7473);
    expect(await rows.where(7472)).toBe(`${sharedPath(kData)}:7473`);
  });

  it.each(['pissa', 'pissa_accum', 'lora'])('run %s', async (name) => {
    const { runs } = JSON.parse(readFileSync(sharedPath(kTrain), 'utf8')) as {
      runs: Record<string, Run>;
    };
    const { config, steps } = runs[name] as Run;
    const golden = readInt32Tensors(sharedPath('golden/smollm2/train.safetensors'));
    const lengths = golden.get(`${name}.lengths`) as Int32Array;
    const used = from(rows, config.first_row, lengths.length);
    const batches = await Batches.create(used, tokenizer, {
      batchSize: config.micro_batch,
      maxLength: config.max_length,
      shuffle: false,
    });
    const ids: number[] = [];
    const targets: number[] = [];
    const got: number[] = [];
    const counts: { tokens: number; supervised_tokens: number }[] = [];
    for await (const batch of batches.batches(0)) {
      ids.push(...batch.inputIds);
      targets.push(...unshifted(batch));
      for (let b = 0; b + 1 < batch.cuSeqlens.length; b++) {
        got.push((batch.cuSeqlens[b + 1] as number) - (batch.cuSeqlens[b] as number));
      }
      counts.push({
        tokens: batch.inputIds.length,
        supervised_tokens: batch.targets.filter((t) => t !== -100).length,
      });
    }
    expect(got).toEqual([...lengths]);
    expect(ids).toEqual([...(golden.get(`${name}.ids`) as Int32Array)]);
    expect(targets).toEqual([...(golden.get(`${name}.targets`) as Int32Array)]);
    const window = counts.length > 2 * steps.length ? 2 : 1;
    steps.forEach((step, s) => {
      const sum = counts.slice(s * window, (s + 1) * window);
      expect(sum.reduce((total, c) => total + c.tokens, 0)).toBe(step.tokens);
      expect(sum.reduce((total, c) => total + c.supervised_tokens, 0)).toBe(step.supervised_tokens);
    });
  });

  it('the padded batch of the adapter cases', async () => {
    const { gsm8k_train_rows, supervised_tokens } = JSON.parse(
      readFileSync(sharedPath('golden/smollm2/lora_r4/expected.json'), 'utf8'),
    ) as { gsm8k_train_rows: number[]; supervised_tokens: number };
    const golden = readInt32Tensors(sharedPath('golden/smollm2/lora_r4/expected.safetensors'));
    const picked: RowSource = {
      ...from(rows, 0, 2),
      length: gsm8k_train_rows.length,
      row: (i) => rows.row(gsm8k_train_rows[i] as number),
    };
    const batches = await Batches.create(picked, tokenizer, {
      batchSize: 2,
      padding: 'longest',
      shuffle: false,
    });
    for await (const batch of batches.batches(0)) {
      expect([...batch.inputIds]).toEqual([...(golden.get('ids') as Int32Array)]);
      expect(unshifted(batch)).toEqual([...(golden.get('targets') as Int32Array)]);
      const mask = golden.get('attention_mask') as Int32Array;
      const lengths = [0, 1].map((b) =>
        mask.slice((b * mask.length) / 2, ((b + 1) * mask.length) / 2).reduce((n, m) => n + m, 0),
      );
      expect([...(batch.lengths as Int32Array)]).toEqual(lengths);
    }
    expect(batches.statistics.supervisedTokens).toBe(supervised_tokens);
  });
});

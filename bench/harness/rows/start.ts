/** Time from the start of a process to the beginning of its first training step, with the work of `balora train --method lora`. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { Batches } from '../../../lib/data/batches.ts';
import { JsonlFile } from '../../../lib/data/jsonl.ts';
import { AutoModelForCausalLM } from '../../../lib/models/index.ts';
import { Tokenizer } from '../../../lib/text/tokenizer.ts';
import { Trainer } from '../../../lib/train/trainer.ts';
import type { BenchDType } from '../types.ts';

export interface StartRowInput {
  readonly model: string;
  readonly dtype: BenchDType;
  /** Time at which the parent started this process, in milliseconds since 1970. */
  readonly startedAt: number;
}

const kRow = { question: 'How much is two and two?', answer: 'Two and two make four.' };

/** Seconds since the process was started. */
export async function startSeconds({ model: path, dtype, startedAt }: StartRowInput) {
  const folder = await mkdtemp(join(tmpdir(), 'balora-bench-'));
  try {
    const file = join(folder, 'train.jsonl');
    await writeFile(file, `${JSON.stringify(kRow)}\n`);
    const tokenizer = await Tokenizer.fromPretrained(path);
    const model = await AutoModelForCausalLM.fromPretrained(path, { dtype });
    const tuned = await AdapterModel.create(model);
    const rows = await JsonlFile.open(file);
    const data = await Batches.create(rows, tokenizer);
    for await (const event of new Trainer({ tuned, data, maxSteps: 1 }).run()) {
      if (event.type === 'start') break;
    }
    const seconds = (Date.now() - startedAt) / 1000;
    await rows.close();
    return seconds;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

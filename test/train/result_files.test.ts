/** The folder that the library's Trainer writes: complete for the Hub, without anything of the command line. */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import type { BatchSource } from '../../lib/data/batch_source.ts';
import { Batches } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinyTokenizerConfig } from '../support/tiny_tokenizer.ts';

let folder: string;
let model: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-result-files-'));
  model = join(folder, 'model');
  await writeTinyCheckpoint(model);
});
afterAll(() => rm(folder, { recursive: true }));

const rows = arrayRows([{ prompt: 'a', completion: 'b' }]);
const data = async () =>
  Batches.create(rows, await Tokenizer.fromPretrained(model), { promptTemplate: 'none' });
const adapter = async () =>
  AdapterModel.create(await AutoModelForCausalLM.fromPretrained(model), { r: 2 });
/** The data without their tokenizer, as a source of the caller's own is. */
const bare = (source: Batches): BatchSource => ({
  fingerprint: source.fingerprint,
  batchCount: (epoch) => source.batchCount(epoch),
  batches: (epoch, start) => source.batches(epoch, start),
});

const kAdapter = ['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'run'];
const kTokenizer = ['tokenizer.json', 'tokenizer_config.json'];

describe("a Trainer's folder", () => {
  it('has the adapter, the files of the tokenizer of its data and a model card of the run', async () => {
    const output = join(folder, 'adapter');
    await new Trainer({ tuned: await adapter(), data: await data(), maxSteps: 4, output }).train();
    expect((await readdir(output)).sort()).toEqual([...kAdapter, 'loss.svg', ...kTokenizer].sort());
    const card = await readFile(join(output, 'README.md'), 'utf8');
    expect(card).toMatch(/^---\nlibrary_name: peft\n/);
    expect(card).toMatch(/^4 steps, /m);
    const config = JSON.parse(await readFile(join(output, 'tokenizer_config.json'), 'utf8'));
    expect(config).toEqual(tinyTokenizerConfig());
  });

  it('has the files of a given tokenizer, and none where no tokenizer is known', async () => {
    const [given, none] = [join(folder, 'given'), join(folder, 'none')];
    const run = async (output: string, more: object) =>
      new Trainer({
        ...{ tuned: await adapter(), data: bare(await data()), maxSteps: 1, output },
        ...more,
      }).train();
    await run(given, { tokenizer: await Tokenizer.fromPretrained(model) });
    await run(none, {});
    expect((await readdir(given)).sort()).toEqual([...kAdapter, ...kTokenizer]);
    expect((await readdir(none)).sort()).toEqual(kAdapter);
    expect(() => new Trainer({ tokenizer: 5 } as never)).toThrow(
      /Trainer: tokenizer must be a Tokenizer, got 5/,
    );
  });

  it('of a whole model has its tokenizer', async () => {
    const output = join(folder, 'full');
    const whole = await AutoModelForCausalLM.fromPretrained(model, { trainable: true });
    const tuned = new FullModel(whole);
    await new Trainer({ tuned, data: await data(), maxSteps: 1, output }).train();
    expect(await readdir(output)).toEqual(expect.arrayContaining(kTokenizer));
  });
});

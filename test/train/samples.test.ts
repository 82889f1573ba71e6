// Sample prompts: their answers at each evaluation, and that training is the same, bit for bit, without them.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { Batches } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { generate } from '../../lib/generate/generate.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { SamplePrompts, StepRecord, TrainEvent } from '../../lib/train/types.ts';
import { timeless } from '../support/run_numbers.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinyClassifier, tinyLabelled } from '../support/tiny_classifier.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

const tokenizer = tinyTokenizer();
let folder: string;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-samples-'));
  await writeTinyCheckpoint(join(folder, 'model'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const kSamples: SamplePrompts = { tokenizer, prompt: ['the a', 'b'], maxNewTokens: 5 };
const rows = (count: number) =>
  Batches.create(
    arrayRows(
      Array.from({ length: count }, (_, i) => ({ prompt: `a ${i}`, response: `the ${i * 7}` })),
    ),
    tokenizer,
    { batchSize: 2, promptTemplate: 'none' },
  );

/** Trains a tiny model with attention and dropout, to folder/name. */
async function run(name: string, more: Partial<TrainerOptions> = {}) {
  const model = await AutoModelForCausalLM.fromPretrained(join(folder, 'model'), {
    trainable: more.tuned === undefined,
  });
  const tuned = await AdapterModel.create(model, { method: 'balora', r: 2, loraDropout: 0.2 });
  const events: TrainEvent[] = [];
  const result = await new Trainer({
    ...{ tuned, data: await rows(8), evalData: await rows(3), maxSteps: 6, evalSteps: 2 },
    ...{ learningRate: 0.01, output: join(folder, name) },
    ...more,
    callbacks: [(event) => void events.push(event), ...(more.callbacks ?? [])],
  }).train();
  return { tuned, model, result, events };
}

const read = (path: string): Buffer => readFileSync(join(folder, path));
const lines = (name: string): Record<string, unknown>[] =>
  read(`${name}/run/samples.jsonl`)
    .toString()
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));
/** The numbers of a run's steps, without times and memory. */
const metrics = (name: string): unknown[] =>
  read(`${name}/run/metrics.jsonl`)
    .toString()
    .trimEnd()
    .split('\n')
    .map((line) => timeless(JSON.parse(line) as StepRecord));

async function answers(tuned: AdapterModel | FullModel, given = kSamples): Promise<unknown[]> {
  const results = await generate(tuned as AdapterModel, given).result;
  return results.map(({ text, tokens, finishReason }) => ({
    text,
    tokens: tokens.length,
    finishReason,
  }));
}

describe('sample prompts', () => {
  it('are answered greedily at each evaluation, into events and the record of the run', async () => {
    const { tuned, events } = await run('with', { samplePrompts: kSamples });
    const order = events.filter(({ type }) => type === 'evaluation' || type === 'samples');
    expect(order.map((event) => [event.type, 'step' in event && event.step])).toEqual(
      [2, 4, 6].flatMap((step) => [
        ['evaluation', step],
        ['samples', step],
      ]),
    );
    const last = await answers(tuned);
    expect(order.at(-1)).toEqual({
      ...{ type: 'samples', step: 6 },
      samples: last.map((answer, i) => ({ prompt: kSamples.prompt?.[i], ...(answer as object) })),
    });
    expect(lines('with').map(({ step, sample, prompt }) => [step, sample, prompt])).toEqual(
      [2, 4, 6].flatMap((step) => [
        [step, 0, 'the a'],
        [step, 1, 'b'],
      ]),
    );
    expect(lines('with').slice(-2)).toMatchObject(last as object[]);
    expect(lines('with')[0]?.text).not.toBe(lines('with')[4]?.text);
  });

  it('change nothing else', async () => {
    const without = await run('without');
    await run('with', { samplePrompts: kSamples });
    for (const file of ['adapter_model.safetensors', 'run/checkpoints/step-6/state.safetensors']) {
      expect(read(`with/${file}`).equals(read(`without/${file}`)), file).toBe(true);
    }
    expect(metrics('with')).toEqual(metrics('without'));
    expect(without.events.some(({ type }) => type === 'samples')).toBe(false);
    expect(existsSync(join(folder, 'without/run/samples.jsonl'))).toBe(false);
  });

  it('are answered anew with an evaluation that was interrupted, and no line is there twice', async () => {
    const stop = new AbortController();
    const first = await run('out', {
      ...{ samplePrompts: kSamples, signal: stop.signal },
      callbacks: [
        (event) => void (event.type === 'evaluation' && event.step === 4 && stop.abort()),
      ],
    });
    expect(first.result).toMatchObject({ reason: 'aborted', steps: 4 });
    await run('out', { samplePrompts: kSamples, resume: true });
    expect(lines('out').map(({ step }) => step)).toEqual([2, 2, 4, 4, 6, 6]);
    await run('whole', { samplePrompts: kSamples });
    expect(lines('out')).toEqual(lines('whole'));
  });

  it('are left out by a signal, and the resumed run makes the whole evaluation', async () => {
    // The prompts end while the answers are computed.
    const stop = new AbortController();
    const own: SamplePrompts = {
      ...{ tokenizer, maxNewTokens: 5 },
      get prompt() {
        if (isEvaluating) stop.abort();
        return kSamples.prompt as string[];
      },
    };
    let isEvaluating = false;
    const { result, events } = await run('out', {
      ...{ samplePrompts: own, signal: stop.signal },
      callbacks: [
        (event) => {
          if (event.type === 'evaluating') isEvaluating = true;
        },
      ],
    });
    expect(result).toMatchObject({ reason: 'aborted', steps: 2 });
    expect(events.some(({ type }) => type === 'evaluation' || type === 'samples')).toBe(false);
    const rest = await run('out', { samplePrompts: kSamples, resume: true });
    expect(rest.events.find(({ type }) => type === 'evaluation')).toMatchObject({ step: 2 });
    expect(lines('out').map(({ step }) => step)).toEqual([2, 2, 4, 4, 6, 6]);
  });

  it('are conversations and ids, too, and are answered by a model that is trained whole', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(join(folder, 'model'), {
      trainable: true,
    });
    const tuned = new FullModel<CausalLM>(model);
    const messages = [{ role: 'user', content: 'a' }];
    const { events } = await run('full', {
      ...{ tuned, samplePrompts: { tokenizer, messages, maxNewTokens: 3 } },
    });
    const samples = events.flatMap((event) => (event.type === 'samples' ? event.samples : []));
    expect(samples.map(({ prompt }) => prompt)).toEqual([messages, messages, messages]);
    expect(samples.at(-1)).toMatchObject(
      (await answers(tuned, { tokenizer, messages, maxNewTokens: 3 }))[0] as object,
    );
    const { events: more } = await run('ids', {
      samplePrompts: { tokenizer, ids: Int32Array.of(1, 2), maxNewTokens: 3 },
    });
    const [first] = more.flatMap((event) => (event.type === 'samples' ? event.samples : []));
    expect(first?.prompt).toEqual([1, 2]);
  });

  it.each<[Partial<SamplePrompts>, string]>([
    [{ prompt: '' }, 'samplePrompts: prompt has no tokens'],
    [
      { prompt: 'a'.repeat(200) },
      'samplePrompts: prompt has 200 tokens, but the context of this llama',
    ],
    [{ stopStrings: '' }, 'stopStrings must be a text that is not empty'],
    [{ temperature: 1 } as object, 'answered greedily'],
    [{ tokenizer: undefined as never }, "samplePrompts: they need the model's tokenizer"],
  ])('are refused before the run: %j', async (more, message) => {
    await expect(run('out', { samplePrompts: { ...kSamples, ...more } })).rejects.toThrow(message);
    expect(existsSync(join(folder, 'out'))).toBe(false);
  });

  it('need held-out data and a model that writes', async () => {
    const tuned = await AdapterModel.create(
      await AutoModelForCausalLM.fromPretrained(join(folder, 'model')),
      { r: 2 },
    );
    const data = await rows(4);
    expect(() => new Trainer({ tuned, data, samplePrompts: kSamples })).toThrow(
      'samplePrompts needs evalData, since the prompts are answered at each evaluation',
    );
    const classifier = await AdapterModel.create(await tinyClassifier(), { r: 2 });
    const labelled = await tinyLabelled(4, { batchSize: 2 });
    const input = { tuned: classifier, data: labelled, evalData: labelled };
    expect(() => new Trainer({ ...input, samplePrompts: kSamples })).toThrow('writes no text');
  });
});

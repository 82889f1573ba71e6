/** The commands end to end on a tiny model: the files and messages that they write, and how a run stops and is resumed. */
import { existsSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ExampleResult } from '../../lib/eval/types.ts';
import { getNumThreads, setNumThreads } from '../../lib/runtime.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

const kThreads = getNumThreads();

let folder: string;
let model: string;
let data: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-train-'));
  model = join(folder, 'model');
  data = join(folder, 'data.jsonl');
  await writeTinyCheckpoint(model);
  const rows = Array.from({ length: 24 }, (_, i) => ({
    question: `What is ${i}?`,
    answer: `It is ${'ab'.repeat((i % 4) + 1)}.`,
  }));
  await writeFile(data, rows.map((row) => JSON.stringify(row)).join('\n'));
});
afterAll(() => rm(folder, { recursive: true }));

const train = (output: string, ...more: string[]) => [
  ...['train', '--model', model, '--data', data, '--output', join(folder, output)],
  ...['--prompt-template', 'none', '--r', '4', '--per-device-train-batch-size', '2'],
  ...['--learning-rate', '0.01', '--max-steps', '6', '--max-length', '64', ...more],
];

async function metrics(output: string): Promise<StepRecord[]> {
  const text = await readFile(join(folder, output, 'run', 'metrics.jsonl'), 'utf8');
  return text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as StepRecord);
}

/** The values that equal runs must share. */
const values = (records: StepRecord[]) =>
  records.map(({ step, loss, gradNorm, learningRate, supervisedTokens }) => [
    ...[step, loss, gradNorm, learningRate, supervisedTokens],
  ]);

it('--ignore-keys applies wherever a language model is loaded', async () => {
  const [odd, output, merged] = ['odd', 'odd-out', 'odd-merged'].map((name) => join(folder, name));
  await cp(model, odd as string, { recursive: true });
  const path = join(odd as string, 'config.json');
  const config = JSON.parse(await readFile(path, 'utf8'));
  await writeFile(path, JSON.stringify({ ...config, odd_key: 1 }));
  const keys = ['--ignore-keys', 'odd_key'];
  const of = (command: string, ...more: string[]) => [command, '--model', odd as string, ...more];
  const tuned = [
    ...of('train', '--data', data, '--prompt-template', 'none', '--max-steps', '1'),
    ...['--method', 'full', '--consistency-weight', '0.1'],
  ];
  expect((await balora(tuned)).err).toMatch(
    /odd_key is not understood.* pass --ignore-keys if you know that it does not$/m,
  );
  expect((await balora([...tuned, ...keys])).code).toBe(0);
  const adapted = of('train', '--data', data, '--prompt-template', 'none', '--max-steps', '1');
  expect((await balora([...adapted, '--output', output as string, ...keys])).code).toBe(0);
  const evaluated = of('evaluate', '--data', data, '--prompt-template', 'none', ...keys);
  expect((await balora(evaluated)).code).toBe(0);
  const merge = of('merge', '--adapter', output as string, '--output', merged as string);
  expect((await balora([...merge, ...keys])).code).toBe(0);
});

describe('balora train', () => {
  it('writes an adapter, metrics and its settings, and plain lines', async () => {
    const { code, out, err } = await balora(
      train('plain', '--eval-data', data, '--eval-steps', '3'),
    );
    expect(err).toMatch(
      /^step 1\/6 {2}loss [\d.]+ {2}\d+ tokens\/s {2}\d+s left {2}task [\d.]+ {2}consistency /m,
    );
    expect(code).toBe(0);
    expect(out).toBe('');
    expect(err.match(/^step /gm)).toHaveLength(6);
    expect(err.match(/^evaluation at step [36]: loss /gm)).toHaveLength(2);
    expect(err).toMatch(/^data: 24 examples \(question -> answer\), 506 tokens, 252 supervised, /m);
    expect(err).toMatch(/completed after 6 steps and .*, written to .*plain\n$/);
    expect(err).not.toContain('no --output');
    expect(err).not.toContain('\u001b');
    const names = await readdir(join(folder, 'plain'));
    expect(names.sort()).toEqual([
      ...['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'loss.svg', 'run'],
      ...['tokenizer.json', 'tokenizer_config.json'],
    ]);
    expect((await metrics('plain')).map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6]);
    const recorded = JSON.parse(
      await readFile(join(folder, 'plain', 'run', 'config.json'), 'utf8'),
    ) as { values: Record<string, unknown> };
    expect(recorded).toMatchObject({ format: 2, task: 'causal-lm', method: 'balora' });
    expect(recorded.values).toMatchObject({ r: 4, method: 'balora', 'learning-rate': 0.01, data });
  });

  it('trains with DoRA, dropout, modules to save, Adafactor and LoRA+, and merges the result', async () => {
    const { code, err } = await balora(
      train(
        ...['dora', '--method', 'dora', '--lora-dropout', '0.1'],
        ...['--layers-to-transform', '0', '--modules-to-save', 'norm', '--optim', 'adafactor'],
        ...['--loraplus-lr-ratio', '4'],
      ),
    );
    expect(err).toMatch(/completed after 6 steps/);
    expect(code).toBe(0);
    const adapter = join(folder, 'dora');
    const config = JSON.parse(await readFile(join(adapter, 'adapter_config.json'), 'utf8'));
    expect(config).toMatchObject({
      use_dora: true,
      lora_dropout: 0.1,
      layers_to_transform: [0],
      modules_to_save: ['norm'],
    });
    const output = join(folder, 'dora-merged');
    const merged = await balora([
      ...['merge', '--model', model, '--adapter', adapter, '--output', output],
    ]);
    expect(merged.out).toMatch(/largest rounding error/);
  });

  it('follows a schedule that requires options', async () => {
    const { code } = await balora(
      train(
        ...['floor', '--method', 'lora', '--warmup-steps', '0'],
        ...['--lr-scheduler-type', 'cosine_with_min_lr'],
        ...['--lr-scheduler-kwargs', '{"min_lr": 0.004}'],
      ),
    );
    expect(code).toBe(0);
    (await metrics('floor')).forEach(({ learningRate }, s) => {
      const wave = 0.5 * (1 + Math.cos((Math.PI * s) / 6));
      expect(learningRate).toBeCloseTo(0.004 + 0.006 * wave, 12);
    });
  });

  it('refuses an unknown model type before a missing tokenizer, and warns first where there is no --output', async () => {
    const unknown = join(folder, 'unknown');
    await mkdir(unknown);
    await writeFile(join(unknown, 'config.json'), '{ "model_type": "mamba" }');
    await cp(join(model, 'model.safetensors'), join(unknown, 'model.safetensors'));
    for (const task of ['causal-lm', 'sequence-classification']) {
      const args = ['train', '--task', task, '--model', unknown, '--data', data];
      const { code, err } = await balora(args);
      expect(err).toMatch(
        /model_type "mamba" is not supported .*; known: .*; read docs\/how-to-add-a-model/,
      );
      expect(code).toBe(1);
      // Said first: what follows may take minutes.
      expect(err).toMatch(/^warning: without --output nothing is saved\n/);
    }
    const dry = await balora(['train', '--model', model, '--data', data, '--dry-run']);
    expect(dry.err).not.toContain('no --output');
  });

  it('keeps the best or the last step of a language model, and the requested number of checkpoints', async () => {
    const eachStep = ['--eval-data', data, '--eval-steps', '1', '--save-steps', '1'];
    const best = await balora(
      train('best', ...eachStep, '--metric-for-best-model', 'loss', '--save-total-limit', '3'),
    );
    expect(best.err).toMatch(/; exported step \d \(loss /);
    expect(await readdir(join(folder, 'best', 'run', 'checkpoints'))).toHaveLength(3);
    const last = await balora(train('last', ...eachStep, '--metric-for-best-model', 'none'));
    expect(last.err).not.toContain('exported step');
    const { values: recorded } = JSON.parse(
      await readFile(join(folder, 'last', 'run', 'config.json'), 'utf8'),
    ) as { values: Record<string, unknown> };
    expect(recorded['metric-for-best-model']).toBe('none');
    const without = await balora(train('refused', '--metric-for-best-model', 'loss'));
    expect(without.err).toBe('error: --metric-for-best-model needs --eval-data\n');
  });

  it('runs SGD with momentum', async () => {
    const sgd = ['--method', 'lora', '--optim', 'sgd'];
    await balora(train('sgd', ...sgd));
    const { code } = await balora(train('momentum', ...sgd, '--momentum', '0.9'));
    expect(code).toBe(0);
    const [plain, moved] = [await metrics('sgd'), await metrics('momentum')];
    expect(moved[0]?.loss).toBe(plain[0]?.loss);
    expect(moved[5]?.loss).not.toBe(plain[5]?.loss);
  });

  it.each([
    [['--lora-bias'], '--lora-bias needs --init-lora-weights true or false, got "pissa"'],
    [['--use-dora', '--lora-bias', '--method', 'lora'], '--lora-bias cannot go with --use-dora'],
    [['--use-dora', '--export', 'residual'], 'export "residual" is not for DoRA'],
    [['--layers-pattern', 'layers'], '--layers-pattern needs --layers-to-transform'],
    [['--modules-to-save', 'head'], '--modules-to-save ["head"] matches no module'],
    [['--capture-graphs'], '--capture-graphs: graphs need a GPU, and the device is cpu'],
    [['--optim', 'lion'], '--optim must be one of adamw, adafactor, sgd'],
  ])('refuses %j with an error that names the option', async (flags, message) => {
    const { code, err } = await balora(train('refused', ...flags));
    expect(err).toContain(message);
    expect(code).not.toBe(0);
    expect(existsSync(join(folder, 'refused', 'adapter_config.json'))).toBe(false);
  });

  it('gives the same run from the record of a run', async () => {
    const config = (run: string) => join(folder, run, 'run', 'config.json');
    const again = ['train', '--config', config('plain'), '--output', join(folder, 'again')];
    expect((await balora(again)).code).toBe(0);
    expect(values(await metrics('again'))).toEqual(values(await metrics('plain')));
    const [first, second] = await Promise.all(
      ['plain', 'again'].map(async (run) => JSON.parse(await readFile(config(run), 'utf8'))),
    );
    expect(second.identity).toEqual(first.identity);
    expect(second.values).toEqual({ ...first.values, output: join(folder, 'again') });
    expect([first.source.r, second.source.r, second.source.output]).toEqual([
      ...['given', 'file', 'given'],
    ]);
  });

  it('stops at an interrupt with a checkpoint, from which it resumes bit for bit', async () => {
    let sent = false;
    const stopped = await balora(train('stopped'), (err) => {
      if (sent || !err.includes('step 2/6')) return;
      sent = true;
      process.emit('SIGINT');
    });
    expect(stopped.code).toBe(130);
    expect(stopped.err).toMatch(/stopping after this micro-batch/);
    expect(stopped.err).toMatch(/aborted after 2 steps/);
    expect(existsSync(join(folder, 'stopped', 'adapter_model.safetensors'))).toBe(false);
    const resumed = await balora(train('stopped', '--resume'));
    expect(resumed.code).toBe(0);
    expect(resumed.err).toMatch(/^data: .*\nstep 3\/6/);
    expect(values(await metrics('stopped'))).toEqual(values(await metrics('plain')));
  });

  it('goes on with more steps, and refuses where a schedule depends on their number', async () => {
    const constant = ['--method', 'pissa', '--lr-scheduler-type', 'constant'];
    expect((await balora(train('longer', ...constant, '--max-steps', '9'))).code).toBe(0);
    expect((await balora(train('extended', ...constant))).code).toBe(0);
    const more = await balora(train('extended', ...constant, '--max-steps', '9', '--resume'));
    expect(more.err).toMatch(/^data: .*\nstep 7\/9/);
    expect(more.code).toBe(0);
    const adapter = (name: string) => readFile(join(folder, name, 'adapter_model.safetensors'));
    expect(await adapter('extended')).toEqual(await adapter('longer'));
    expect(values(await metrics('extended'))).toEqual(values(await metrics('longer')));
    const refused = await balora(train('plain', '--max-steps', '9', '--resume'));
    expect(refused.err).toMatch(
      /step-6 is of a run of 6 steps, and cannot be continued to 9 bit for bit: the weight of the term consistency /,
    );
    expect(refused.code).toBe(2);
    const fewer = await balora(train('extended', ...constant, '--resume'));
    expect(fewer.err).toMatch(
      /has 9 steps, and --max-steps or --num-train-epochs ask for a run of 6/,
    );
  });

  it('notes the command line and its result', async () => {
    const args = train('noted', '--method', 'lora', '--eval-data', data);
    expect((await balora(args)).code).toBe(0);
    const run = (name: string) => readFile(join(folder, 'noted', 'run', name), 'utf8');
    expect(JSON.parse(await run('environment.jsonl'))).toMatchObject({ commandLine: args });
    expect(JSON.parse(await run('result.json'))).toMatchObject({ reason: 'completed', steps: 6 });
    expect(JSON.parse(await run('evaluations.jsonl'))).toMatchObject({ step: 6, examples: 24 });
  });

  it('answers sample prompts at each evaluation', async () => {
    const prompts = join(folder, 'prompts.jsonl');
    await writeFile(prompts, '{"prompt": "a b"}\n{"prompt": "the"}\n');
    const more = ['--method', 'lora', '--eval-steps', '3', '--sample-prompts', prompts];
    const { code, err } = await balora(train('samples', ...more, '--eval-data', data));
    expect(code, err).toBe(0);
    expect(err).toMatch(/\nsample 1 of 2 at step 3: .*a b.*\n {2}/);
    expect(err).toContain('sample 2 of 2 at step 6:');
    const text = await readFile(join(folder, 'samples', 'run', 'samples.jsonl'), 'utf8');
    expect(
      text
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line).step),
    ).toEqual([3, 3, 6, 6]);
    const without = await balora(train('none', ...more));
    expect(without.err).toContain('--sample-prompts needs --eval-data');
    expect(without.code).toBe(2);
    await writeFile(prompts, '{"what": "a b"}\n');
    const unknown = await balora(train('none', ...more, '--eval-data', data));
    expect(unknown.err).toMatch(/prompts.jsonl: .*fields: what/);
    expect(unknown.code).toBe(2);
  });

  it.each(['lora', 'rslora', 'pissa', 'full'])('--method %s lowers the loss', async (method) => {
    const { code } = await balora(
      train(method, '--method', method, '--packing', '--max-steps', '12').filter(
        (arg, i, all) => method !== 'full' || (arg !== '--r' && all[i - 1] !== '--r'),
      ),
    );
    expect(code).toBe(0);
    const records = await metrics(method);
    expect(records.at(-1)?.loss).toBeLessThan((records[0] as StepRecord).loss - 0.05);
    expect(records[0]?.terms).toEqual({});
  });

  it('--method full with a consistency weight reports the size of the second copy of the model', async () => {
    const flags = ['--method', 'full', '--consistency-weight', '0.02'];
    const args = train('second', ...flags, '--max-steps', '3').filter(
      (arg, i, all) => arg !== '--r' && all[i - 1] !== '--r',
    );
    const { code, err } = await balora(args);
    expect(code).toBe(0);
    const { size } = await stat(join(model, 'model.safetensors'));
    // f32 like the file, which has a header on top.
    const said = /^--consistency-weight .* needs a second copy of the model: ([\d.]+) KiB$/m.exec(
      err,
    );
    expect(Math.abs(Number(said?.[1]) - size / 1024)).toBeLessThan(0.1 * (size / 1024));
    const records = await metrics('second');
    // The weights first change in the second step, since the learning rate of the first is 0.
    expect(Math.abs(records[0]?.terms.consistency?.value as number)).toBeLessThan(1e-6);
    expect(records[2]?.terms.consistency?.value).toBeGreaterThan(1e-6);
  });

  it('--adapter trains an adapter further, with the model without it as the teacher', async () => {
    const args = train('continued', '--adapter', join(folder, 'plain')).filter(
      (arg, i, all) => arg !== '--r' && all[i - 1] !== '--r',
    );
    expect((await balora(args)).code).toBe(0);
    const [plain, continued] = [await metrics('plain'), await metrics('continued')];
    // A fresh PiSSA adapter does not differ from its teacher, a trained one does.
    expect(Math.abs(plain[0]?.terms.consistency?.value as number)).toBeLessThan(1e-6);
    expect(continued[0]?.terms.consistency?.value).toBeGreaterThan(1e-4);
    expect(continued[0]?.taskLoss).toBeLessThan((plain[0] as StepRecord).taskLoss);
  });

  it('runs with --threads, bf16 and named fields, and writes the residual form over an earlier run', async () => {
    const output = join(folder, 'residual');
    const flags = [
      ...['--method', 'pissa', '--threads', '1', '--dtype', 'bf16', '--export', 'residual'],
      ...['--prompt-field', 'question', '--response-field', 'answer'],
    ];
    const first = await balora(train('residual', ...flags, '--max-steps', '2'));
    expect(first.err).toMatch(/^data: 24 examples \(question -> answer\), /m);
    expect(first.code).toBe(0);
    expect(getNumThreads()).toBe(1);
    const again = await balora(train('residual', ...flags));
    expect(again.err).toMatch(/is not empty/);
    expect(again.code).toBe(2);
    expect(await metrics('residual')).toHaveLength(2);
    await writeFile(join(output, 'run', 'my-notes'), '');
    const over = await balora(train('residual', ...flags, '--overwrite'));
    expect(over.code).toBe(0);
    expect(await metrics('residual')).toHaveLength(6);
    expect(existsSync(join(output, 'run', 'my-notes'))).toBe(true);

    // The output has the pair of rank r, its initial values, and the residual base for both, which is an ordinary model.
    const config = async (...at: string[]) =>
      JSON.parse(await readFile(join(output, ...at), 'utf8')) as Record<string, unknown>;
    expect(await config('adapter_config.json')).toMatchObject({
      r: 4,
      base_model_name_or_path: join(output, 'residual'),
    });
    expect(await config('initial', 'adapter_config.json')).toMatchObject({ r: 4 });
    const evaluated = async (base: string, ...more: string[]) => {
      const { out, err } = await balora([
        ...['evaluate', '--model', base, '--data', data, '--prompt-template', 'none', '--json'],
        ...['--dtype', 'f32', '--max-length', '64', ...more],
      ]);
      expect(err).toBe('');
      return (JSON.parse(out) as { loss: number }).loss;
    };
    const before = await evaluated(model);
    const residual = join(output, 'residual');
    const start = await evaluated(residual, '--adapter', join(output, 'initial'));
    const tuned = await evaluated(residual, '--adapter', output);
    // W = (W - s B0 A0) + s B0 A0, the residual rounded to bf16.
    expect(Math.abs(start - before)).toBeLessThan(0.02);
    expect(tuned).toBeLessThan(before - 0.05);
    setNumThreads(kThreads);
  });

  it('--dry-run prints the plan of a run and writes nothing', async () => {
    const { code, out } = await balora(train('dry', '--dry-run'));
    expect(code).toBe(0);
    expect(out).toMatch(/^data +24 examples \(question -> answer\), /);
    expect(out).toMatch(/^steps +6, 1 of them warm-up; 12 micro-batches per epoch$/m);
    expect(out).toMatch(/^memory +[\d.]+ [KM]iB of tensors, /m);
    expect(existsSync(join(folder, 'dry'))).toBe(false);
  });

  it.each([
    [['--r', '400'], 2, /r(ank)? .*400/],
    [['--target-modules', 'nope'], 2, /nope.*q_proj/s],
    [['--response-field', 'reply'], 2, /no field 'reply' \(fields: question, answer\)/],
    [['--max-length', '3'], 2, /no supervised token/],
    [['--lr-scheduler-type', 'cosign'], 2, /cosine/],
    [
      ['--lr-scheduler-type', 'cosine_with_min_lr'],
      2,
      /--lr-scheduler-kwargs: .*one of minLr and minLrRate must be given/,
    ],
    [['--lr-scheduler-type', 'warmup_stable_decay'], 2, /numDecaySteps must be given/],
    [['--adapter', 'none'], 2, /--r cannot be set/],
  ])('%j is refused, and nothing is written', async (args, code, message) => {
    const result = await balora(train('refused', ...args));
    expect(result.err).toMatch(message);
    expect(result.code).toBe(code);
    expect(existsSync(join(folder, 'refused', 'adapter_model.safetensors'))).toBe(false);
    await rm(join(folder, 'refused'), { recursive: true, force: true });
  });

  it('refuses an output folder that is not empty', async () => {
    await mkdir(join(folder, 'full-house'));
    await writeFile(join(folder, 'full-house', 'notes.txt'), '');
    const { code, err } = await balora(train('full-house'));
    expect(err).toMatch(/is not empty \(notes\.txt\)/);
    expect(code).toBe(2);
  });
});

describe('balora evaluate and merge', () => {
  const evaluate = async (...args: string[]) => {
    const { code, out, err } = await balora([
      ...['evaluate', '--data', data, '--prompt-template', 'none', '--max-length', '64', '--json'],
      ...args,
    ]);
    expect(err).toBe('');
    expect(code).toBe(0);
    return JSON.parse(out) as Record<string, number> & { examples: ExampleResult[] };
  };

  it('agree on the adapter and on the merged model', async () => {
    const adapter = join(folder, 'plain');
    const tuned = await evaluate('--model', model, '--adapter', adapter);
    const base = await evaluate('--model', model);
    // The JSON has exactly the fields of the library's result.
    const shape = {
      loss: 0,
      perplexity: 0,
      tokens: 0,
      supervisedTokens: 0,
      entropy: 0,
      effectiveRank: 0,
    };
    const fields = [...Object.keys(shape), 'kl', 'seconds', 'examples'];
    for (const one of [tuned, base]) {
      expect(Object.keys(one).sort()).toEqual(fields.sort());
      expect(one).toMatchObject({
        ...Object.fromEntries(Object.keys(shape).map((key) => [key, expect.any(Number)])),
        ...{
          tokens: 506,
          supervisedTokens: 252,
          perplexity: expect.closeTo(Math.exp(one.loss as number), 6),
        },
        seconds: expect.any(Number),
      });
      const sum = (key: 'tokens' | 'supervisedTokens') =>
        one.examples.reduce((total, example) => total + example[key], 0);
      expect([sum('tokens'), sum('supervisedTokens')]).toEqual([506, 252]);
      const mean = one.examples.reduce(
        (total, { loss, supervisedTokens }) => total + (loss as number) * supervisedTokens,
        0,
      );
      expect(mean / 252).toBeCloseTo(one.loss as number, 9);
      expect(one.entropy).toBeGreaterThan(0);
      expect(one.effectiveRank).toBeGreaterThan(1);
      expect(one.effectiveRank).toBeLessThanOrEqual(16 + 1e-6); // C
    }
    expect(tuned.loss).toBeLessThan(base.loss as number);
    expect(tuned.kl).toBeGreaterThan(0);
    expect(base.kl).toBeNull();
    expect(tuned.examples.map(({ index }) => index)).toEqual(
      Array.from({ length: 24 }, (_, i) => i),
    );
    const one = await evaluate(
      ...['--model', model, '--adapter', adapter, '--per-device-eval-batch-size', '1'],
    );
    expect(one.loss).toBeCloseTo(tuned.loss as number, 5);

    const merged = join(folder, 'merged');
    const args = ['merge', '--model', model, '--adapter', adapter, '--output', merged];
    setNumThreads(2);
    const { code, out } = await balora([...args, '--threads', '1']);
    expect(code).toBe(0);
    expect(getNumThreads()).toBe(1);
    setNumThreads(kThreads);
    expect(out).toMatch(/largest rounding error \d\.\d+e-\d+ in model\.layers\.\d/);
    const whole = await evaluate('--model', merged);
    expect(whole.loss).toBeCloseTo(tuned.loss as number, 5);
    expect((await balora(args)).err).toMatch(/is not empty/);
  });

  it('take a checkpoint as the adapter, and say what an unfinished run has', async () => {
    const output = join(folder, 'unfinished');
    const args = train('unfinished', '--save-steps', '2', '--save-total-limit', '9');
    let sent = false;
    await balora(args, (err) => {
      if (sent || !err.includes('step 5/6')) return;
      sent = true;
      process.emit('SIGINT');
    });
    const checkpoint = (step: number) => join(output, 'run', 'checkpoints', `step-${step}`);
    const of = (command: string, adapter: string, ...more: string[]) =>
      balora([command, '--model', model, '--adapter', adapter, ...more]);
    const held = ['--data', data, '--prompt-template', 'none', '--max-length', '64', '--json'];
    for (const refused of [
      await of('evaluate', output, ...held),
      await of('merge', output, '--output', join(folder, 'unwritten')),
    ]) {
      expect(refused.err).toContain(
        `has not written an adapter yet, and is at step 5 of 6; resume the run, or give a checkpoint: ${checkpoint(5)}, `,
      );
      expect(refused.code).toBe(1);
    }
    const early = await of('evaluate', checkpoint(4), ...held);
    expect(early.err).toBe(
      `warning: ${checkpoint(4)}: this is the adapter of step 4 of 6 of a run\n`,
    );
    const merged = join(folder, 'merged-early');
    expect((await of('merge', checkpoint(4), '--output', merged)).code).toBe(0);
    const whole = await evaluate('--model', merged);
    expect(whole.loss).toBeCloseTo((JSON.parse(early.out) as { loss: number }).loss, 5);
    const further = train('from-early', '--adapter', checkpoint(4)).filter(
      (arg, i, all) => arg !== '--r' && all[i - 1] !== '--r',
    );
    expect((await balora(further)).code).toBe(0);
    expect((await balora([...args, '--resume'])).code).toBe(0);
    expect((await of('evaluate', output, ...held)).err).toBe('');
  });

  it('print a table without --json', async () => {
    const { out } = await balora([
      ...['evaluate', '--model', model, '--data', data, '--prompt-template', 'none'],
    ]);
    expect(out).toMatch(/^loss +[\d.]+\nperplexity +[\d.]+\nKL to the base +no adapter\n/);
  });
});

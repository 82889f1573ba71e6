/** Forms of data, several files with weights, corruptions and the printed example, from the command line on a tiny model. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { StepRecord } from '../../lib/train/types.ts';
import { balora } from '../support/run_cli.ts';
import { formFile } from '../support/shown_rows.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

let folder: string;
let model: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-forms-'));
  model = join(folder, 'model');
  await writeTinyCheckpoint(model);
});
afterAll(() => rm(folder, { recursive: true }));

const train = (data: readonly string[], ...more: string[]) => [
  ...['train', '--model', model, '--method', 'lora', '--r', '2', '--max-steps', '6'],
  ...[
    '--per-device-train-batch-size',
    '2',
    '--max-length',
    '128',
    '--lr-scheduler-type',
    'constant',
  ],
  ...data.flatMap((path) => ['--data', path]),
  ...more,
];

async function losses(output: string): Promise<unknown[]> {
  const text = await readFile(join(output, 'run', 'metrics.jsonl'), 'utf8');
  const steps = text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as StepRecord);
  return steps.map(({ step, loss, gradNorm }) => [step, loss, gradNorm]);
}

const kFiles = ['messages.jsonl', 'alpaca.json', 'pairs.tsv'].map(formFile);
const kMixed = ['--prompt-template', 'chat', '--data-weights', '1,2,1'];

describe('several files with weights', () => {
  it('are mixed, resumed bit for bit, and refused with other weights', async () => {
    const output = (name: string) => ['--output', join(folder, name)];
    const whole = await balora(train(kFiles, ...kMixed, ...output('whole')));
    expect(whole.err).toMatch(
      /^data: 8 examples \(messages, instruction \+ input -> output as messages, prompt -> completion as messages\), /m,
    );
    expect(whole.code).toBe(0);
    let sent = false;
    const stopped = await balora(train(kFiles, ...kMixed, ...output('stopped')), (err) => {
      if (sent || !err.includes('step 2/6')) return;
      sent = true;
      process.emit('SIGINT');
    });
    expect(stopped.err).toMatch(/aborted after 2 steps/);
    const other = [...kMixed.slice(0, -1), '1,3,1'];
    const refused = await balora(train(kFiles, ...other, ...output('stopped'), '--resume'));
    expect(refused.code).toBe(2);
    expect(refused.err).toMatch(/data/);
    const resumed = await balora(train(kFiles, ...kMixed, ...output('stopped'), '--resume'));
    expect(resumed.code).toBe(0);
    expect(await losses(join(folder, 'stopped'))).toEqual(await losses(join(folder, 'whole')));
    const config = JSON.parse(await readFile(join(folder, 'whole', 'run', 'config.json'), 'utf8'));
    expect(config.values).toMatchObject({ data: kFiles, 'data-weights': [1, 2, 1] });
  });

  it('may stand in a configuration file, and are refused by the name of the flag', async () => {
    const config = join(folder, 'config.json');
    const settings = { data: kFiles, 'data-weights': [1, 2, 1], 'prompt-template': 'chat' };
    await writeFile(config, JSON.stringify(settings));
    const { out, code } = await balora(train([], '--config', config, '--dry-run'));
    expect(code).toBe(0);
    expect(out).toMatch(/^data +8 examples/m);
    const weights = async (given: string) =>
      (await balora(train(kFiles, '--data-weights', given))).err;
    expect(await weights('1,2')).toBe(
      'error: --data-weights must be one number for each file: got 2 for 3\n',
    );
    expect(await weights('1,2,0')).toMatch(/--data-weights must be a list of numbers > 0, got/);
    expect(await weights('1;2')).toMatch(/--data-weights must be a list of numbers > 0, got/);
  });
});

describe('--dry-run', () => {
  it('prints an example of each file, with marks around what is trained on', async () => {
    const { out } = await balora(train(kFiles, ...kMixed, '--dry-run'));
    expect(out).toMatch(
      /\nexample: .*messages\.jsonl:1: \d+ of \d+ tokens are trained on, in \[\[ \]\]\n<start>system\\n\nBe brief\.<end>\\n\n/,
    );
    expect(out).toContain('assistant\\n\n[[Red.<end>]]\\n\n');
    expect(out).toMatch(/\nexample: .*alpaca\.json:2 \(row 0\): /);
    expect(out).toContain('assistant\\n\n[[ blue.<end>]]\\n\n');
    expect(out).not.toContain('\u001b');
  });

  it('colours it where colours are wanted', async () => {
    vi.stubEnv('FORCE_COLOR', '1');
    vi.stubEnv('NO_COLOR', '');
    try {
      const { out } = await balora(
        train([kFiles[2] as string], '--prompt-template', 'none', '--dry-run'),
      );
      expect(out).toContain('\u001b[32m<end>');
      expect(out).toMatch(/trained on, in green/);
      vi.stubEnv('NO_COLOR', '1');
      const plain = await balora(
        train([kFiles[2] as string], '--prompt-template', 'none', '--dry-run'),
      );
      expect(plain.out).not.toContain('\u001b');
    } finally {
      vi.unstubAllEnvs();
    }
  });
});

describe('forms on the command line', () => {
  it('are named, with roles, fields, masks and a template in a file', async () => {
    const template = join(folder, 'template.txt');
    await writeFile(template, 'Q: {prompt}\nA:');
    const of = async (file: string, ...more: string[]) =>
      (await balora(train([formFile(file)], ...more, '--dry-run'))).out;
    expect(await of('pairs.tsv', '--prompt-template', template)).toContain('A:[[ blue.<end>]]');
    expect(await of('text.jsonl', '--data-format', 'text')).toContain(
      '[[The first document.<end>]]',
    );
    expect(await of('conversational.jsonl', '--train-on-turns', 'all')).toContain('[[<start>user');
    const story = join(folder, 'story.jsonl');
    const turns = [
      { from: 'narrator', value: 'Once' },
      { from: 'gpt', value: 'upon.' },
    ];
    await writeFile(story, JSON.stringify({ tale: turns }));
    const { out } = await balora(
      train([story], '--messages-field', 'tale', '--role-map', 'narrator=user', '--dry-run'),
    );
    expect(out).toContain('[[upon.<end>]]');
    const shown = await balora([
      ...['inspect', model, '--data', story, '--messages-field', 'tale'],
      ...['--role-map', 'narrator=user'],
    ]);
    expect(shown.out).toContain('story.jsonl:1 (tale)');
  });

  it.each([
    [['--data-format', 'openai'], /--data-format must be one of messages, sharegpt, alpaca, pr/],
    [['--data-format', 'alpaca'], /pairs\.tsv:2: --data-format alpaca needs instruction and out/],
    [['--prompt-template', 'alpacca'], /--prompt-template must be one of the names chat, alpaca/],
    [['--role-map', 'narrator'], /--role-map must be name=word,name=word, each name once, got/],
    [['--train-on-turns', 'first'], /--train-on-turns must be one of assistant, last, all/],
    [['--label-noise', '0.1'], /--label-noise needs --task sequence-classification/],
    [['--rare-class', 'x'], /--rare-class needs --task sequence-classification/],
    [['--text-noise-kinds', 'typos'], /--text-noise-kinds needs --text-noise/],
    [['--text-noise', '2'], /--text-noise must be a number >= 0 and <= 1, got 2/],
  ])('%j is refused by its flag', async (flags, message) => {
    const { err, code } = await balora(train([formFile('pairs.tsv')], ...flags));
    expect(err).toMatch(message);
    expect(code).toBe(2);
  });
});

describe('corruptions', () => {
  it('are told, recorded, and repeated by the same seed alone', async () => {
    const file = formFile('pairs.tsv');
    const noisy = ['--prompt-template', 'none', '--text-noise', '0.5', '--duplicate-rows', '1'];
    const outputs = [
      ['a', '3'],
      ['b', '3'],
      ['c', '4'],
    ].map(([name, seed]) => [join(folder, `noise-${name}`), seed as string] as const);
    for (const [output, seed] of outputs) {
      const more = [...noisy, '--corruption-seed', seed, '--output', output];
      const { err, code } = await balora(train([file], ...more));
      expect(err).toMatch(
        new RegExp(
          `^warning: .*pairs\\.tsv: corrupted on purpose, with seed ${seed}: 0 of 2 rows left out, 0 labels replaced, 2 rows doubled, \\d+ words changed$`,
          'm',
        ),
      );
      expect(code).toBe(0);
    }
    const [first, same, other] = await Promise.all(outputs.map(([output]) => losses(output)));
    expect(same).toEqual(first);
    expect(other).not.toEqual(first);
    const record = join(folder, 'noise-a', 'run', 'config.json');
    expect(JSON.parse(await readFile(record, 'utf8')).values).toMatchObject({
      'text-noise': 0.5,
      'duplicate-rows': 1,
      'corruption-seed': 3,
    });
  });

  it('concern labels of a classifier, never the held-out data', async () => {
    const rows = Array.from({ length: 12 }, (_, i) => `film ${i}\t${['bad', 'good'][i % 2]}`);
    const data = join(folder, 'labels.tsv');
    await writeFile(data, `text\tlabel\n${rows.join('\n')}\n`);
    const { err, code } = await balora([
      ...train([data], '--task', 'sequence-classification', '--eval-data', data),
      ...['--label-noise', '0.5', '--class-imbalance', '3', '--rare-class', 'good'],
      ...['--consistency-weight', '0'],
    ]);
    expect(err).toMatch(/: 4 of 12 rows left out, 4 labels replaced, 0 rows doubled, 0 words/);
    expect(err.match(/corrupted on purpose/g)).toHaveLength(1);
    expect(code).toBe(0);
  });
});

it('balora schema has the options of data', async () => {
  const { out } = await balora(['schema']);
  const { properties } = JSON.parse(out);
  expect(properties['data-format']).toMatchObject({ type: ['string', 'null'] });
  expect(properties['data-weights'].items).toMatchObject({ exclusiveMinimum: 0 });
  expect(JSON.stringify(properties.data)).toContain('"array"');
  expect(properties['label-noise']).toMatchObject({ minimum: 0, maximum: 1 });
  expect(properties['role-map'].additionalProperties).toMatchObject({ minLength: 1 });
});

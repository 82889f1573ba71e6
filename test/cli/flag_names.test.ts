import { expect, it } from 'vitest';
import { withFlags } from '../../lib/cli/flag_names.ts';
import { kTrainOptions } from '../../lib/cli/train_options.ts';
import { balora } from '../support/run_cli.ts';

it.each([
  ['maxLength must be at least 2', '--max-length must be at least 2'],
  [
    'name the fields with promptField and responseField',
    'name the fields with --prompt-field and --response-field',
  ],
  ['raise maxLength.', 'raise --max-length.'],
  [
    'choose another one, or pass overwrite: true or resume: true',
    'choose another one, or pass --overwrite or --resume',
  ],
  ['pass shuffle: false', 'pass --no-shuffle'],
  ['with ignoreKeys (--ignore-keys)', 'with --ignore-keys'],
  ['with maxLength 26 (--max-length)', 'with --max-length 26'],
  ['use baseFormat gguf (--base-format gguf), which', 'use --base-format gguf, which'],
  ["pass problemType: 'regression'", 'pass --problem-type regression'],
  ["with columns: ['label', 'text'] where", 'with --columns label,text where'],
  ['positions has no meaning for x', '--positions has no meaning for x'],
  [
    'method full trains every weight: r cannot be set',
    'method full trains every weight: --r cannot be set',
  ],
  [
    'method full has no adapter; leave out r, loraAlpha, bias',
    'method full has no adapter; leave out --r, --lora-alpha, bias',
  ],
  ['leave out loraAlpha, r', 'leave out --lora-alpha, --r'],
  ['learningRate: was 1, is 2', '--learning-rate: was 1, is 2'],
  ['run (batchSize: was 8, is 4)', 'run (--per-device-train-batch-size: was 8, is 4)'],
  [
    'another run (compute: was 1, is 2; seed: was 3)',
    'another run (--compute: was 1, is 2; --seed: was 3)',
  ],
  [
    'compute: no term reads a teacher; leave compute out',
    '--compute: no term reads a teacher; leave --compute out',
  ],
  ['rows.jsonl: the seed: 3; leave the data out', 'rows.jsonl: the seed: 3; leave the data out'],
])('%s', (message, expected) => {
  expect(withFlags(message, kTrainOptions)).toBe(expected);
});

it.each([
  "no field 'maxLength' (fields: a)",
  'runs/maxLength/x.json: no such file',
  'maxLength.json: no such file',
  '--max-length must be at least 2',
  'data: cannot open x.jsonl: no such file',
  'batchSize must be 1', // an option of the library only
  'toString: true',
  'leave out method and data',
  'the model and the data: true and false',
  'output folder x is not empty',
])('leaves alone: %s', (message) => {
  expect(withFlags(message, kTrainOptions)).toBe(message);
});

it('is what the command line shows of an error of the library', async () => {
  const { code, err } = await balora([
    ...['train', '--model', 'm', '--data', 'd', '--task', 'sequence-classification'],
    ...['--positions', 'non_padding'],
  ]);
  expect(code).toBe(2);
  expect(err).toContain('--positions has no meaning for sequence-classification; leave it out');
});

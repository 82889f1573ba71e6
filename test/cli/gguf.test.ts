/** Training from GGUF files without a tokenizer.json beside them: SentencePiece, Unigram and WordPiece vocabularies. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AutoModelForSeq2SeqLM } from '../../lib/models/index.ts';
import { noGrad } from '../../lib/tensor.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { writeGoldenGguf } from '../support/gguf_models.ts';
import { wordPieceFields } from '../support/gguf_wordpiece.ts';
import {
  greedyPieces,
  idsWithBytes,
  kSample,
  learnMerges,
  type Piece,
  viterbi,
} from '../support/plain_sentencepiece.ts';
import { balora } from '../support/run_cli.ts';
import { tinyRows } from '../support/tiny_classifier.ts';
import { tinyWordPieceJson } from '../support/tiny_wordpiece.ts';
import type { GgufValue } from '../support/write_gguf.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-gguf-'));
});
afterAll(() => rm(folder, { recursive: true }));

/** A vocabulary: the special tokens, then `count` pieces learned from the sample, without byte tokens. */
function pieces(special: Piece[], count: number): Piece[] {
  const { merges, chars } = learnMerges(kSample.replaceAll(' ', '▁'), 100);
  const made = new Set([...chars, ...merges.map(([a, b]) => a + b)]);
  const tokens = [...made].slice(0, count - special.length);
  expect(tokens.length).toBe(count - special.length);
  return [...special, ...tokens.map((token, i) => ({ token, score: -i - 0.5, type: 1 }))];
}

function vocabulary(model: string, list: readonly Piece[]): Record<string, GgufValue> {
  return {
    'tokenizer.ggml.model': model,
    'tokenizer.ggml.pre': 'default',
    'tokenizer.ggml.tokens': list.map(({ token }) => token),
    'tokenizer.ggml.scores': Float32Array.from(list, ({ score }) => score),
    'tokenizer.ggml.token_type': list.map(({ type }) => type),
  };
}

describe('a GGUF file alone', () => {
  it('of llama with SentencePiece BPE is tokenized and trained', async () => {
    const list = pieces(
      [
        { token: '<unk>', score: 0, type: 2 },
        { token: '<s>', score: 0, type: 3 },
        { token: '</s>', score: 0, type: 3 },
      ],
      113,
    );
    const path = join(folder, 'llama.gguf');
    writeGoldenGguf(path, 'llama-untied-gqa', {}, { vocabulary: vocabulary('llama', list) });
    const tokenizer = await Tokenizer.fromPretrained(path);
    const scores = new Map(list.filter((p) => p.type === 1).map((p) => [p.token, p.score]));
    const text = 'the cat  then sat';
    const symbols = greedyPieces(`▁${text.replaceAll(' ', '▁')}`, (token) => scores.get(token));
    const ids = idsWithBytes(
      symbols,
      list.map(({ token }) => token),
    );
    expect(symbols.some((symbol) => symbol.length > 2)).toBe(true);
    expect(tokenizer.encode(text)).toEqual([1, ...ids]);
    expect(tokenizer.decode(ids)).toBe(text);

    const data = join(folder, 'train.jsonl');
    const row = JSON.stringify({ question: 'the cat sat on', response: 'the mat' });
    await writeFile(data, `${row}\n`.repeat(8));
    const out = join(folder, 'llama-out');
    const { code, err } = await balora([
      ...['train', '--model', path, '--data', data, '--output', out, '--max-steps', '2'],
      ...['--prompt-field', 'question', '--response-field', 'response', '--r', '2'],
    ]);
    expect(err).toMatch(/completed after 2 steps/);
    expect(code).toBe(0);

    // A merged model has its tokenizer beside it and does not need the GGUF file any more.
    const fields = ['--prompt-field', 'question', '--response-field', 'response', '--data', data];
    for (const [name, at, adapter, flags] of [
      ['full', '', false, ['--method', 'full']],
      ['pissa', 'residual', true, ['--method', 'pissa', '--export', 'residual', '--r', '2']],
    ] as const) {
      const written = join(folder, `llama-${name}`);
      const run = ['train', '--model', path, '--output', written, '--max-steps', '2'];
      expect((await balora([...run, ...fields, ...flags])).code, name).toBe(0);
      const model = join(written, at);
      const again = await Tokenizer.fromPretrained(model);
      expect(again.encode(text), name).toEqual(tokenizer.encode(text));
      const on = adapter ? ['--adapter', written] : [];
      const evaluated = await balora(['evaluate', '--model', model, ...on, ...fields]);
      expect(evaluated.err, name).toBe('');
      expect(evaluated.out, name).toMatch(/^loss +[\d.]+$/m);
    }
  });

  it('of T5 with Unigram is tokenized', async () => {
    const list = pieces(
      [
        { token: '<pad>', score: 0, type: 3 },
        { token: '</s>', score: 0, type: 3 },
        { token: '<unk>', score: 0, type: 2 },
      ],
      113,
    );
    const path = join(folder, 't5.gguf');
    const keys = {
      ...vocabulary('t5', list),
      'tokenizer.ggml.add_space_prefix': true,
      'tokenizer.ggml.remove_extra_whitespaces': true,
      'tokenizer.ggml.add_bos_token': false,
      'tokenizer.ggml.add_eos_token': true,
      'tokenizer.ggml.eos_token_id': 1,
      'tokenizer.ggml.padding_token_id': 0,
      'tokenizer.ggml.unknown_token_id': 2,
    };
    writeGoldenGguf(path, 't5', {}, { vocabulary: keys });
    const tokenizer = await Tokenizer.fromPretrained(path);
    const ids = tokenizer.encode(' the cat  sat');
    expect(ids).toEqual([...viterbi('▁the▁cat▁sat', list, 2), 1]);
    const model = await AutoModelForSeq2SeqLM.fromPretrained(path);
    const side = (list: number[]) => ({
      inputIds: Int32Array.from(list),
      positions: Int32Array.from(list.keys()),
      cuSeqlens: Int32Array.of(0, list.length),
    });
    const states = noGrad(() => model.forward({ ...side(ids), decoder: side([0, ...ids]) }));
    expect(states.shape[0]).toBe(ids.length + 1);
  });

  it('of BERT with WordPiece is trained and evaluated as a classifier', async () => {
    const words = ['bad', 'so', 'good', 'a', 'film', '##s', 'plot', 'and'];
    const filling = Array.from({ length: 109 - 5 - words.length }, (_, i) => `[unused${i}]`);
    const fields = wordPieceFields(tinyWordPieceJson([...words, ...filling]));
    const path = join(folder, 'bert.gguf');
    writeGoldenGguf(path, 'bert', {}, { vocabulary: fields });
    const tokenizer = await Tokenizer.fromPretrained(path);
    expect(tokenizer.encode('a GOOD films')).toEqual([2, 8, 7, 9, 10, 3]);

    const data = join(folder, 'train.tsv');
    const lines = tinyRows(30).map(({ text, label }) => `${label}\t${text}`);
    await writeFile(data, `label\tsentence\n${lines.join('\n')}\n`);
    const task = ['--task', 'sequence-classification', '--model', path, '--data', data];
    const out = join(folder, 'bert-out');
    const trained = await balora([
      ...['train', ...task, '--output', out, '--num-labels', '3', '--max-steps', '2', '--r', '2'],
    ]);
    expect(trained.err).toMatch(/completed after 2 steps/);
    expect(trained.code).toBe(0);
    const { code, out: table } = await balora(['evaluate', ...task, '--adapter', out]);
    expect(code).toBe(0);
    expect(table).toMatch(/^accuracy +[\d.]+$/m);

    const full = join(folder, 'bert-full');
    const flags = ['--method', 'full', '--num-labels', '3', '--max-steps', '2'];
    expect((await balora(['train', ...task, ...flags, '--output', full])).code).toBe(0);
    const whole = await balora(['evaluate', ...task.slice(0, 2), '--model', full, '--data', data]);
    expect(whole.err).toBe('');
    expect(whole.out).toMatch(/^accuracy +[\d.]+$/m);
  });
});

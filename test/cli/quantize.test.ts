/** `balora quantize`, and commands on what it writes. */
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

let folder: string;
let model: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-quantize-'));
  model = join(folder, 'model');
  await writeTinyCheckpoint(model);
});
afterAll(() => rm(folder, { recursive: true }));

const quantize = (output: string, ...more: string[]) =>
  balora(['quantize', '--model', model, '--output', output, ...more]);

describe('balora quantize', () => {
  it.each([
    ['plain', []],
    ['double quantisation', ['--double-quant']],
    ['smaller blocks of bf16', ['--block-size', '32', '--dtype', 'bf16']],
  ] as [string, string[]][])('writes a model that is read in its blocks: %s', async (_, more) => {
    const output = join(folder, `written-${more.join('')}`);
    const { code, out, err } = await quantize(output, ...more);
    expect(err).toBe('');
    expect(code).toBe(0);
    expect(out).toMatch(/14 weights in NF4, with a relative error of up to \d/);
    const names = await readdir(output);
    expect(names.sort()).toEqual(expect.arrayContaining(['config.json', 'model.safetensors']));
    expect(names).toContain('tokenizer.json');
    const { quantization_config: config } = JSON.parse(
      await readFile(join(output, 'config.json'), 'utf8'),
    ) as { quantization_config: Record<string, unknown> };
    expect(config.quant_method).toBe('bitsandbytes');
    expect(config.bnb_4bit_use_double_quant).toBe(more.includes('--double-quant'));
    const loss = async (...format: string[]): Promise<string> => {
      const data = join(folder, 'data.jsonl');
      await writeFile(data, '{"prompt": "a", "response": "bc"}\n');
      const evaluated = await balora([
        ...['evaluate', '--model', output, '--data', data, '--prompt-template', 'none'],
        ...['--dtype', 'bf16', ...format],
      ]);
      expect(evaluated.code).toBe(0);
      return evaluated.out;
    };
    expect(await loss('--base-format', 'nf4')).toBe(await loss());
  });

  it('trains on a base in blocks, and merges into its values', async () => {
    const [adapter, merged, data] = ['adapter', 'merged', 'train.jsonl'].map((name) =>
      join(folder, name),
    ) as [string, string, string];
    await writeFile(data, '{"prompt": "a", "response": "bc"}\n');
    const format = ['--base-format', 'nf4'];
    const trained = await balora([
      ...['train', '--model', model, '--data', data, '--output', adapter, '--method', 'balora'],
      ...['--r', '2', '--max-steps', '2', '--prompt-template', 'none', ...format],
    ]);
    expect(trained.err).not.toMatch(/error/);
    expect(trained.code).toBe(0);
    const { code, out, err } = await balora([
      ...['merge', '--model', model, '--adapter', adapter, '--output', merged, ...format],
    ]);
    expect(code).toBe(0);
    expect(err).toMatch(/the weights in NF4 are \d+\.\d\d% from those of the files/);
    expect(out).toMatch(
      /written to .*, the values of the blocks \(nf4\) with the adapter; largest rounding error \d/,
    );
    const config = JSON.parse(await readFile(join(merged, 'config.json'), 'utf8')) as object;
    expect(config).not.toHaveProperty('quantization_config');
  });

  it('is a base beside which all weights cannot be trained', async () => {
    const data = join(folder, 'full.jsonl');
    await writeFile(data, '{"prompt": "a", "response": "bc"}\n');
    const { code, err } = await balora([
      ...['train', '--model', model, '--data', data, '--method', 'full', '--base-format', 'nf4'],
      ...['--output', join(folder, 'full'), '--max-steps', '1', '--prompt-template', 'none'],
    ]);
    expect(err).toMatch(/--base-format nf4: weights in blocks are frozen, and .* asks for weights/);
    expect(code).toBe(2);
  });

  it('is refused for a model that is quantised already, and for odd blocks', async () => {
    const first = join(folder, 'first');
    await quantize(first);
    const again = await balora([
      ...['quantize', '--model', first, '--output', join(folder, 'again')],
    ]);
    expect(again.err).toMatch(/is quantised already, to NF4/);
    expect(again.code).toBe(2);
    const odd = await quantize(join(folder, 'odd'), '--block-size', '33');
    expect(odd.err).toMatch(/--block-size must be an even number, got 33/);
  });
});

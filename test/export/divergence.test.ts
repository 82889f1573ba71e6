/** The divergence of a written file from the model in F32: by the command, and against a plain computation in f64. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { AutoModelForCausalLM, type CausalLM, demoCheckpoint } from '../../lib/models/index.ts';
import { linear } from '../../lib/ops/index.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { divergence } from '../support/llama_cpp.ts';
import { balora } from '../support/run_cli.ts';
import { disturb } from '../support/tiny_adapters.ts';

const kText =
  'Call me Ishmael. Some years ago — never mind how long precisely — having little or no money '.repeat(
    3,
  );

let folder: string;
let adapter: string;
let text: string;
let tuned: AdapterModel;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-divergence-'));
  [adapter, text] = [join(folder, 'adapter'), join(folder, 'text.txt')];
  tuned = await AdapterModel.create(await AutoModelForCausalLM.fromPretrained(demoCheckpoint), {
    r: 2,
  });
  disturb(tuned, 1, 0.05);
  await tuned.savePretrained(adapter);
  await writeFile(text, kText);
});
afterAll(() => rm(folder, { recursive: true }));

const run = (...more: string[]) =>
  balora(['export', '--model', demoCheckpoint, '--adapter', adapter, ...more]);

function logits(model: CausalLM, ids: readonly number[]): Float32Array[] {
  const inputIds = Int32Array.from(ids);
  const batch = {
    inputIds,
    positions: inputIds.map((_, i) => i),
    cuSeqlens: Int32Array.of(0, ids.length),
  };
  const all = scope(() =>
    noGrad(() => linear(model.forward(batch), model.head.weight).dataSync() as Float32Array),
  );
  return ids.map((_, i) => all.subarray(i * model.vocabSize, (i + 1) * model.vocabSize));
}

describe('balora export --kl-text', () => {
  it.each([
    // Logarithms of probabilities around -10 are rounded in steps of 1e-6 in f32.
    ['f32', 0, 1e-6],
    ['q4_k_m', 1e-4, 0.2],
  ] as const)('prints the mean KL of a file in %s', async (outtype, least, most) => {
    const output = join(folder, `${outtype}.gguf`);
    const options = ['--to', 'gguf', '--outtype', outtype, '--kl-text', text, '--output', output];
    const { code, out, err } = await run(...options);
    expect(err).toBe('');
    expect(code).toBe(0);
    const [, tokens, kl] =
      /^mean KL from F32 on (\d+) tokens of the text: (\S+) nats a token$/m.exec(out) ?? [];
    const tokenizer = await Tokenizer.fromPretrained(demoCheckpoint);
    const ids = tokenizer.encode(kText);
    expect(Number(tokens)).toBe(ids.length);
    expect(Number(kl)).toBeGreaterThanOrEqual(least - 1e-6);
    expect(Number(kl)).toBeLessThan(most);
    const file = await AutoModelForCausalLM.fromPretrained(output);
    const [own, other] = [logits(tuned.model, ids), logits(file, ids)];
    const sum = own.reduce((total, p, i) => total + divergence(p, other[i] as Float32Array), 0);
    expect(Math.abs(Number(kl) - sum / ids.length)).toBeLessThan(1e-6 + 0.01 * (sum / ids.length));
  });

  it('is for files that are rounded, and needs a text', async () => {
    const output = join(folder, 'none');
    const refused = await run('--to', 'mlx', '--kl-text', text, '--output', output);
    expect(refused.err).toMatch(/kl-?text is for --to gguf and modelfile, got --to mlx/i);
    const missing = await run(
      '--to',
      'gguf',
      '--kl-text',
      join(folder, 'no.txt'),
      '--output',
      output,
    );
    expect(missing.err).toMatch(/no\.txt/);
    expect(missing.code).not.toBe(0);
  });
});

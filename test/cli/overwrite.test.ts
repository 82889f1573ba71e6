/** `--overwrite` of the commands that write a model or an adapter. */
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { balora } from '../support/run_cli.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

let folder: string;
const at = (name: string): string => join(folder, name);
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-overwrite-'));
  await writeTinyCheckpoint(at('model'));
  const model = await AutoModelForCausalLM.fromPretrained(at('model'));
  const tuned = await AdapterModel.create(model, { method: 'pissa', r: 2 });
  disturb(tuned, 1, 0.1);
  await tuned.savePretrained(at('adapter'));
});
afterAll(() => rm(folder, { recursive: true }));

const kAdapted = ['--adapter', 'adapter'];
const command = (args: readonly string[], ...more: string[]) =>
  balora([
    ...args.map((arg) => (arg === 'adapter' ? at(arg) : arg)),
    ...['--model', at('model'), ...more],
  ]);

it.each([
  ['merge', ['merge', ...kAdapted]],
  ['convert', ['convert', ...kAdapted]],
  ['quantize', ['quantize']],
  ['export peft', ['export', ...kAdapted]],
  ['export plain-lora', ['export', ...kAdapted, '--export', 'plain-lora']],
  ['export mlx', ['export', ...kAdapted, '--to', 'mlx']],
  ['export safetensors', ['export', ...kAdapted, '--to', 'safetensors']],
] as const)('%s replaces its folder, and leaves what is not its own', async (name, args) => {
  const output = at(`of ${name}`);
  const run = (...more: string[]) => command(args, '--output', output, ...more);
  expect(await run()).toMatchObject({ code: 0, err: '' });
  const names = (await readdir(output)).sort();
  const [tensors] = names.filter((one) => one.endsWith('.safetensors')) as [string];
  const whole = await readFile(join(output, tensors));
  await writeFile(join(output, 'notes.txt'), 'mine');
  await writeFile(join(output, tensors), 'damaged');
  const refused = await run();
  expect(refused.err).toMatch(
    /is not empty .*; choose another one, or pass --overwrite to replace/,
  );
  expect(refused.code).toBe(2);
  expect(await run('--overwrite')).toMatchObject({ code: 0, err: '' });
  expect((await readdir(output)).sort()).toEqual([...names, 'notes.txt'].sort());
  expect(await readFile(join(output, tensors))).toEqual(whole);
});

it('of shards leaves none of the earlier ones', async () => {
  const run = (...more: string[]) =>
    command(['export', ...kAdapted, '--to', 'safetensors'], '--output', at('shards'), ...more);
  expect((await run('--max-shard-size', '20KB')).code).toBe(0);
  const weights = async () =>
    (await readdir(at('shards'))).filter((name) => name.includes('safetensors'));
  expect((await weights()).length).toBeGreaterThan(2);
  expect((await run('--overwrite')).code).toBe(0);
  expect(await weights()).toEqual(['model.safetensors']);
  // Another form in its place leaves no config.json of the model beside the adapter.
  const adapter = await command(['export', ...kAdapted], '--output', at('shards'), '--overwrite');
  expect(adapter).toMatchObject({ code: 0, err: '' });
  expect(
    (await readdir(at('shards'))).filter((name) => /config\.json|safetensors/.test(name)),
  ).toEqual(['adapter_config.json', 'adapter_model.safetensors', 'tokenizer_config.json']);
});

it.each(['gguf-lora', 'gguf', 'modelfile'])('export %s replaces a file', async (to) => {
  const template = at('model/chat_template.jinja');
  await writeFile(
    template,
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}" +
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
  );
  const output = at(`file of ${to}`);
  const run = (...more: string[]) =>
    command(['export', ...kAdapted, '--to', to], '--output', output, ...more);
  expect(await run()).toMatchObject({ code: 0, err: '' });
  const path = to === 'modelfile' ? join(output, 'model.gguf') : output;
  const whole = await readFile(path);
  // Only its beginning says of a file that an export may have written it; a folder has a list.
  await writeFile(path, to === 'modelfile' ? 'damaged' : 'GGUF damaged');
  expect((await run()).err).toMatch(/exists; choose .*--overwrite|is not empty .*--overwrite/);
  expect(await run('--overwrite')).toMatchObject({ code: 0, err: '' });
  expect((await readFile(path)).equals(whole)).toBe(true);
  expect((await readdir(folder)).filter((name) => name.startsWith('.balora'))).toEqual([]);
});

it.each(['gguf-lora', 'gguf'])(
  'export %s never writes over a file of the model, or one that is no GGUF file',
  async (to) => {
    const run = (output: string, ...more: string[]) =>
      command(['export', ...kAdapted, '--to', to], '--output', output, '--overwrite', ...more);
    const before = async () => ({
      model: await readFile(at('model/model.safetensors')),
      config: await readFile(at('model/config.json')),
    });
    const files = await before();
    for (const name of ['model/model.safetensors', 'model/config.json', 'model/new.gguf']) {
      expect(await run(at(name)), name).toMatchObject({
        code: 2,
        err: expect.stringMatching(/output .* lies in .*model, of which it is made; choose/),
      });
    }
    expect(await before()).toEqual(files);
    await writeFile(at('precious.txt'), 'GGUF is a format of files.');
    await writeFile(at('plain.txt'), 'precious');
    const refused = [
      [at('plain.txt'), [], /plain\.txt is no GGUF file, so no export of balora wrote it/],
      ...(to === 'gguf'
        ? [[at('precious.txt'), ['--kl-text', at('precious.txt')], /of which it is made/] as const]
        : []),
    ] as const;
    for (const [output, more, message] of refused) {
      const text = await readFile(output, 'utf8');
      const { code, err } = await run(output, ...more);
      expect([code, err]).toEqual([2, expect.stringMatching(message)]);
      expect(await readFile(output, 'utf8')).toBe(text);
    }
  },
);

it('never replaces the model or the adapter that it reads, or a folder of others', async () => {
  const merge = (output: string) =>
    command(['merge', ...kAdapted], '--output', at(output), '--overwrite');
  expect((await merge('model')).err).toMatch(/would replace .*model, of which it is made/);
  expect((await merge('adapter')).err).toMatch(/would replace .*adapter, of which it is made/);
  const other = await AutoModelForCausalLM.fromPretrained(at('model'));
  await (await AdapterModel.create(other, { r: 2 })).savePretrained(at('other'));
  expect((await merge('other')).err).toMatch(
    /holds adapter_[a-z_.]+, which no export of balora wrote there/,
  );
});

it.each([
  ['merge', ['merge', ...kAdapted], ['README.md', 'generation_config.json', 'tokenizer.json']],
  ['convert', ['convert', ...kAdapted], ['tokenizer.json']],
  ['quantize', ['quantize'], ['tokenizer.json', 'generation_config.json']],
  ['export peft', ['export', ...kAdapted], ['README.md', 'tokenizer.json']],
  [
    'export plain-lora',
    ['export', ...kAdapted, '--export', 'plain-lora'],
    ['tokenizer_config.json'],
  ],
  [
    'export safetensors',
    ['export', ...kAdapted, '--to', 'safetensors'],
    ['README.md', 'generation_config.json', 'tokenizer.json'],
  ],
  ['export modelfile', ['export', ...kAdapted, '--to', 'modelfile'], ['model.gguf', 'Modelfile']],
] as const)('%s refuses a file of others before it reads the model', async (name, args, files) => {
  for (const file of files) {
    const output = await mkdtemp(join(folder, 'others-'));
    await writeFile(join(output, file), 'mine');
    // Without a model to read, the error of the output can only come first.
    const where = args.map((arg) => (arg === 'adapter' ? at(arg) : arg));
    const { code, err } = await balora([
      ...[...where, '--model', at('no/model/here')],
      ...['--output', output, '--overwrite'],
    ]);
    expect(err, `${name} ${file}`).toMatch(
      new RegExp(`output folder .* holds ${file}, which no export of balora wrote there; remove`),
    );
    expect(code).toBe(2);
    expect(await readdir(output)).toEqual([file]);
  }
});

it('of a model without an adapter leaves a README.md, which it does not write', async () => {
  const run = () =>
    command(['export', '--to', 'safetensors'], '--output', at('alone'), '--overwrite');
  expect((await run()).code).toBe(0);
  await writeFile(at('alone/README.md'), 'mine');
  expect(await run()).toMatchObject({ code: 0, err: '' });
  expect(await readFile(at('alone/README.md'), 'utf8')).toBe('mine');
});

it('is in the help of each of these commands', async () => {
  for (const name of ['merge', 'convert', 'quantize', 'export', 'train']) {
    expect((await balora([name, '--help'])).out, name).toMatch(/--overwrite\s+replace /);
  }
  const help = (await balora(['export', '--help'])).out.replace(/\s+/g, ' ');
  expect(help).toContain('and nothing else; a file only where it is a GGUF file');
});

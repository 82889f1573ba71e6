/** Merged models as folders: shards with an index, all end tokens, the tokenizer's files, a card, and nothing half written. */
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { loadSafetensors, readSafetensorsIndex } from '../../lib/io/index.ts';
import { AutoModelForCausalLM, AutoModelForSeq2SeqLM, saveModel } from '../../lib/models/index.ts';
import { synchronize } from '../../lib/runtime.ts';
import { balora } from '../support/run_cli.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { writeTinySeq2Seq } from '../support/tiny_seq2seq.ts';

let folder: string;
let model: string;
let adapter: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-safetensors-'));
  model = join(folder, 'model');
  adapter = join(folder, 'adapter');
  await writeTinyCheckpoint(model);
  const base = await AutoModelForCausalLM.fromPretrained(model);
  const tuned = await AdapterModel.create(base, { r: 2, loraAlpha: 4 });
  disturb(tuned, 1, 0.2);
  await tuned.savePretrained(adapter);
});
afterAll(() => rm(folder, { recursive: true }));

const run = (output: string, ...more: string[]) =>
  balora([
    ...['export', '--model', model, '--adapter', adapter, '--to', 'safetensors'],
    ...['--output', join(folder, output), ...more],
  ]);
const json = async (...path: string[]) =>
  JSON.parse(await readFile(join(folder, ...path), 'utf8')) as Record<string, unknown>;

describe('shards', () => {
  it('are no larger than the limit unless one tensor is, and together the whole model', async () => {
    expect(await run('whole')).toMatchObject({ code: 0, err: '' });
    const { code, out } = await run('parts', '--max-shard-size', '4kb');
    expect(code).toBe(0);
    expect(out).toMatch(
      /^largest rounding error \d.*% of the largest change there\nwritten to .*parts\n$/,
    );
    const names = (await readdir(join(folder, 'parts'))).filter((name) => /safetensors/.test(name));
    const shards = names.filter((name) => name.endsWith('.safetensors'));
    expect(names).toContain('model.safetensors.index.json');
    const count = `${shards.length}`.padStart(5, '0');
    expect(shards[0]).toBe(`model-00001-of-${count}.safetensors`);
    expect(shards.length).toBeGreaterThan(2);

    const whole = (await loadSafetensors(join(folder, 'whole', 'model.safetensors'))).tensors;
    const index = readSafetensorsIndex(join(folder, 'parts', 'model.safetensors.index.json'));
    expect([...index.keys()].sort()).toEqual(Object.keys(whole).sort());
    let total = 0;
    for (const shard of shards) {
      const { tensors } = await loadSafetensors(join(folder, 'parts', shard));
      const sizes = Object.entries(tensors).map(([name, tensor]) => {
        expect(index.get(name)).toBe(shard);
        expect(tensor.dataSync(), name).toEqual(whole[name]?.dataSync());
        return 4 * tensor.size;
      });
      const bytes = sizes.reduce((sum, size) => sum + size, 0);
      expect(sizes.length === 1 || bytes <= 4000, shard).toBe(true);
      total += bytes;
    }
    expect((await json('parts', 'model.safetensors.index.json')).metadata).toEqual({
      total_size: total,
    });
    const again = await AutoModelForCausalLM.fromPretrained(join(folder, 'parts'));
    const q = 'model.layers.1.self_attn.q_proj.weight';
    expect(new Map(again.namedParameters()).get(q)?.dataSync()).toEqual(whole[q]?.dataSync());
  });

  it('of which one cannot be written leave none', async () => {
    const base = await AutoModelForCausalLM.fromPretrained(model);
    const output = join(folder, 'refused');
    await mkdir(output);
    const failing = saveModel(base, output, {
      maxShardSize: 4000,
      replace: (name) => {
        if (name !== 'model.layers.1.mlp.up_proj.weight') return null;
        throw new Error('no more');
      },
    });
    await expect(failing).rejects.toThrow('no more');
    await synchronize();
    expect(await readdir(output)).toEqual([]);
  });
});

describe('the folder', () => {
  it('has the card, the vocabulary and the end tokens', async () => {
    expect((await readdir(join(folder, 'whole'))).sort()).toEqual([
      ...['.balora-export.json', 'README.md', 'config.json', 'generation_config.json'],
      ...['model.safetensors', 'tokenizer.json', 'tokenizer_config.json'],
    ]);
    const card = await readFile(join(folder, 'whole', 'README.md'), 'utf8');
    expect(card).toMatch(
      /^---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- balora\n---\n/,
    );
    expect(card).toContain('adapter merged into its weights');
    expect(card).toContain('| lora_alpha | 4 |');
  });

  it('names every end token: those of the base, and the end of a turn in its chat template', async () => {
    const chat = join(folder, 'chat');
    await cp(model, chat, { recursive: true });
    const config = await json('chat', 'tokenizer_config.json');
    const tokenizer = (await json('chat', 'tokenizer.json')) as {
      added_tokens: { id: number; content: string; special: boolean }[];
    };
    const [end, turn] = tokenizer.added_tokens.filter(({ special }) => special) as unknown as [
      { id: number; content: string },
      { id: number; content: string },
    ];
    const template = `{% for m in messages %}{{ m.role + ': ' + m.content + '${turn.content}' }}{% endfor %}`;
    await writeFile(
      join(chat, 'tokenizer_config.json'),
      JSON.stringify({ ...config, chat_template: template }),
    );
    await writeFile(
      join(chat, 'generation_config.json'),
      JSON.stringify({ eos_token_id: end.id, temperature: 0.5 }),
    );
    const { code, err } = await balora([
      ...['merge', '--model', chat, '--adapter', adapter, '--output', join(folder, 'chat-merged')],
    ]);
    expect(err).toBe('');
    expect(code).toBe(0);
    expect(await json('chat-merged', 'generation_config.json')).toEqual({
      temperature: 0.5,
      eos_token_id: [end.id, turn.id],
    });
    expect((await json('chat-merged', 'tokenizer_config.json')).chat_template).toBe(template);
  });

  it('of an encoder-decoder has no generation_config.json that its base lacks', async () => {
    const [t5, output] = [join(folder, 't5'), join(folder, 't5-merged')];
    await writeTinySeq2Seq(t5);
    const base = await AutoModelForSeq2SeqLM.fromPretrained(t5);
    const tuned = await AdapterModel.create(base, { r: 2, targetModules: ['q'] });
    await tuned.savePretrained(join(folder, 't5-adapter'));
    const { code, err } = await balora([
      ...['merge', '--model', t5, '--adapter', join(folder, 't5-adapter'), '--output', output],
    ]);
    expect(code, err).toBe(0);
    const names = await readdir(output);
    expect(names).toContain('README.md');
    expect(names.includes('generation_config.json')).toBe(
      (await readdir(t5)).includes('generation_config.json'),
    );
  });

  it('is as it was after a failure: absent, or empty', async () => {
    const head = join(folder, 'head');
    const base = await AutoModelForCausalLM.fromPretrained(model);
    const tuned = await AdapterModel.create(base, { r: 2, modulesToSave: ['lm_head'] });
    disturb(tuned, 1, 0.2);
    await tuned.savePretrained(head);
    await mkdir(join(folder, 'empty'));
    for (const output of ['absent', 'empty']) {
      const { code, err } = await balora([
        ...['export', '--model', model, '--adapter', head, '--to', 'safetensors'],
        ...['--output', join(folder, output)],
      ]);
      expect(err).toMatch(
        /merge: lm_head.* is trained apart from the weight that the model ties it to/,
      );
      expect(code).toBe(1);
    }
    await expect(readdir(join(folder, 'absent'))).rejects.toThrow('ENOENT');
    expect(await readdir(join(folder, 'empty'))).toEqual([]);
  });
});

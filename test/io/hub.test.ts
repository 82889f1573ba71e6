// The Hugging Face hub, played by a server on 127.0.0.1: which files are fetched, the layout of the cache, offline use, failures.
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { ArgumentError, FormatError, NativeError } from '../../lib/errors.ts';
import { resolveModel } from '../../lib/io/hub.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { FakeHub, type Files, fakeCommit } from '../support/fake_hub.ts';
import { architecture } from '../support/golden_checkpoints.ts';
import { balora } from '../support/run_cli.ts';
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny_tokenizer.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-hub-'));
let hub: FakeHub;
let hubUrl: string;

const repos: Record<string, Files> = {
  'tiny/sharded': Object.fromEntries(
    readdirSync(architecture('llama-sharded/model')).map((name) => [
      name,
      readFileSync(join(architecture('llama-sharded/model'), name)),
    ]),
  ),
  'tiny/ggufs': {
    'a.Q4.gguf': Buffer.from('a'),
    'b.Q8.gguf': Buffer.from('b'),
    'README.md': Buffer.from('r'),
  },
  'tiny/words': {
    'tokenizer.json': Buffer.from(JSON.stringify(tinyTokenizerJson())),
    'tokenizer_config.json': Buffer.from(JSON.stringify(tinyTokenizerConfig())),
    'chat_template.json': Buffer.from('{}'), // a file that is not needed
    'config.json': Buffer.from('{}'),
    'model.safetensors': Buffer.from('w'),
  },
  'tiny/none': { 'pytorch_model.bin': Buffer.from('x') },
};
const extras = {
  'README.md': Buffer.from('not fetched'),
  'pytorch_model.bin': Buffer.from('nor this'),
};
Object.assign(repos['tiny/sharded'] as object, extras);

beforeAll(async () => {
  hub = await FakeHub.start(repos);
  hubUrl = hub.url;
});
afterAll(() => {
  hub.close();
  rmSync(folder, { recursive: true, force: true });
});
beforeEach(() => hub.reset());

/** Makes every answer have this status. */
function breakHub(status: number): void {
  hub.intercept = (_path, response) => {
    response.writeHead(status).end('down');
    return true;
  };
}
const cache = (name: string): string => join(folder, name);

describe('a model id', () => {
  it('is fetched into the cache, loaded, and found there again', async () => {
    const cacheDir = cache('load');
    const model = await AutoModelForCausalLM.fromPretrained('tiny/sharded', { hubUrl, cacheDir });
    expect(model.nameOrPath).toBe('tiny/sharded');
    expect(model.vocabSize).toBe(97);
    const snapshot = join(cacheDir, 'models--tiny--sharded', 'snapshots', fakeCommit);
    expect(model.folder).toBe(snapshot);
    expect(readdirSync(snapshot).sort()).toEqual(
      readdirSync(architecture('llama-sharded/model')).sort(),
    );
    expect(readFileSync(join(cacheDir, 'models--tiny--sharded', 'refs', 'main'), 'utf8')).toBe(
      fakeCommit,
    );

    hub.requests = [];
    expect(await resolveModel('tiny/sharded', { hubUrl, cacheDir })).toBe(snapshot);
    expect(hub.requests.filter(({ path }) => path.includes('/resolve/'))).toEqual([]);
    hub.requests = [];
    expect(await resolveModel('tiny/sharded', { hubUrl, cacheDir, offline: true })).toBe(snapshot);
    expect(hub.requests).toEqual([]);
    for (const status of [503, 429, 408]) {
      breakHub(status);
      expect(await resolveModel('tiny/sharded', { hubUrl, cacheDir }), `${status}`).toBe(snapshot);
    }
    breakHub(401);
    await expect(resolveModel('tiny/sharded', { hubUrl, cacheDir })).rejects.toThrow(/401/);
  });

  it('gives its tokenizer without fetching its weights', async () => {
    const cacheDir = cache('tokenizer');
    const tokenizer = await Tokenizer.fromPretrained('tiny/words', { hubUrl, cacheDir });
    const local = Tokenizer.fromJson(tinyTokenizerJson(), tinyTokenizerConfig());
    expect(tokenizer.encode('abc')).toEqual(local.encode('abc'));
    expect(tokenizer.eosId).toBe(local.eosId);
    const snapshot = join(cacheDir, 'models--tiny--words', 'snapshots', fakeCommit);
    expect(readdirSync(snapshot).sort()).toEqual(['tokenizer.json', 'tokenizer_config.json']);
    // The files of the model are fetched when the model is loaded.
    expect(await resolveModel('tiny/words', { hubUrl, cacheDir })).toBe(snapshot);
    expect(readdirSync(snapshot)).toContain('model.safetensors');
    await expect(Tokenizer.fromPretrained('tiny/none', { hubUrl, cacheDir })).rejects.toThrow(
      /tiny\/none holds neither a tokenizer\.json nor a GGUF file/,
    );
  });

  it('is not loaded as a model from a cache that has only its tokenizer', async () => {
    const [cacheDir, offline] = [cache('half'), true];
    await Tokenizer.fromPretrained('tiny/words', { hubUrl, cacheDir });
    await expect(resolveModel('tiny/words', { cacheDir, offline })).rejects.toThrow(
      /tiny\/words is not in the cache .*half, and offline mode is on/,
    );
    breakHub(503);
    await expect(resolveModel('tiny/words', { hubUrl, cacheDir })).rejects.toThrow(
      /tiny\/words: cannot be fetched from .*503/,
    );
    await Tokenizer.fromPretrained('tiny/words', { hubUrl, cacheDir });
    hub.reset();
    const path = await resolveModel('tiny/words', { hubUrl, cacheDir });
    expect(await resolveModel('tiny/words', { cacheDir, offline })).toBe(path);
    // Nor from one in which the weights are a dangling link.
    rmSync(realpathSync(join(path, 'model.safetensors')));
    await expect(resolveModel('tiny/words', { cacheDir, offline })).rejects.toThrow(NativeError);
    await Tokenizer.fromPretrained('tiny/words', { cacheDir, offline });
  });

  it('can be resolved several times at once, also over dangling links', async () => {
    const cacheDir = cache('twice');
    const options = { hubUrl, cacheDir };
    const snapshot = join(cacheDir, 'models--tiny--words', 'snapshots', fakeCommit);
    const ask = () => Promise.all([1, 2, 3].map(() => resolveModel('tiny/words', options)));
    expect(await ask()).toEqual([snapshot, snapshot, snapshot]);
    rmSync(join(cacheDir, 'models--tiny--words', 'blobs'), { recursive: true });
    expect(await ask()).toEqual([snapshot, snapshot, snapshot]);
    expect(readFileSync(join(snapshot, 'model.safetensors'), 'utf8')).toBe('w');
    const files = readdirSync(cacheDir, { recursive: true }).map(String);
    expect(files.filter((name) => name.includes('incomplete'))).toEqual([]);
  });

  it('is accepted by `balora inspect`, too', async () => {
    vi.stubEnv('HF_ENDPOINT', hubUrl);
    vi.stubEnv('HF_HUB_CACHE', cache('inspect'));
    try {
      const { code, out, err } = await balora(['inspect', 'tiny/sharded']);
      expect(err).toMatch(/^downloading model-00004-of-00004\.safetensors, [\d.]+ KiB$/m);
      expect(code).toBe(0);
      expect(out).toMatch(/^sharded safetensors, 4 files\n.*model\.embed_tokens\.weight/s);
      expect((await balora(['inspect', 'tiny/sharded'])).err).toBe('');
    } finally {
      vi.unstubAllEnvs();
    }
  });

  it('is fetched by every command with a message', async () => {
    vi.stubEnv('HF_ENDPOINT', hubUrl);
    const data = join(folder, 'd.jsonl');
    writeFileSync(data, '{"prompt": "a", "response": "b"}\n');
    const adapter = join(folder, 'adapter');
    mkdirSync(adapter);
    const config = { peft_type: 'LORA', r: 2, lora_alpha: 4, target_modules: ['q_proj'] };
    const on = ['--data', data];
    const classes = ['--task', 'sequence-classification'];
    try {
      for (const [task, ...args] of [
        ['CAUSAL_LM', 'inspect', 'tiny/words', ...on],
        ['CAUSAL_LM', 'train', ...on],
        ['SEQ_CLS', 'train', ...classes, ...on],
        ['CAUSAL_LM', 'evaluate', ...on],
        ['SEQ_CLS', 'evaluate', ...classes, ...on],
        ['CAUSAL_LM', 'merge', '--output', join(folder, 'merged')],
        ['SEQ_CLS', 'merge', '--output', join(folder, 'merged')],
      ] as [string, ...string[]][]) {
        const name = [task, ...args].join(' ');
        writeFileSync(
          join(adapter, 'adapter_config.json'),
          JSON.stringify({ ...config, task_type: task }),
        );
        vi.stubEnv('HF_HUB_CACHE', cache(name.replaceAll('/', '-')));
        const model = args[0] === 'inspect' ? [] : ['--model', 'tiny/sharded'];
        const given = args[0] === 'merge' ? ['--adapter', adapter] : [];
        const { err } = await balora([...args, ...model, ...given]);
        expect(err, name).toMatch(
          /^downloading (model-00001.*\.safetensors|tokenizer\.json), [\d.]+ /m,
        );
      }
    } finally {
      vi.unstubAllEnvs();
    }
  });

  it('may name one file of several', async () => {
    const cacheDir = cache('gguf');
    const error = await resolveModel('tiny/ggufs', { hubUrl, cacheDir }).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(ArgumentError);
    expect(String(error)).toMatch(
      /several GGUF files; name one: tiny\/ggufs\/a\.Q4\.gguf, tiny\/ggufs\/b\.Q8\.gguf/,
    );
    const path = await resolveModel('tiny/ggufs/b.Q8.gguf', { hubUrl, cacheDir });
    expect(readFileSync(path, 'utf8')).toBe('b');
    expect(hub.requests.some(({ path }) => path.includes('a.Q4.gguf'))).toBe(false);
  });
});

describe('failures', () => {
  it('name an id that does not exist, and the server', async () => {
    const failure = resolveModel('tiny/missing', { hubUrl, cacheDir: cache('x') });
    await expect(failure).rejects.toThrow(NativeError);
    await expect(failure).rejects.toThrow(
      /tiny\/missing: cannot be fetched from http:\/\/127\.0\.0\.1:\d+: .*not found/i,
    );
  });

  it('name a server that does not answer', async () => {
    const dead = 'http://127.0.0.1:9';
    await expect(
      resolveModel('tiny/sharded', { hubUrl: dead, cacheDir: cache('y') }),
    ).rejects.toThrow(/cannot be fetched from http:\/\/127\.0\.0\.1:9/);
    expect(existsSync(cache('y'))).toBe(false);
  });

  it('of an incomplete download leave no file in the cache', async () => {
    const cacheDir = cache('cut');
    const cut = 'model-00002-of-00004.safetensors';
    hub.intercept = (path, response) => {
      if (path.endsWith(cut)) response.end(repos['tiny/sharded']?.[cut]?.subarray(0, 100));
      return path.endsWith(cut);
    };
    await expect(resolveModel('tiny/sharded', { hubUrl, cacheDir })).rejects.toThrow(
      /model-00002-of-00004\.safetensors ended after \d+ of \d+ bytes/,
    );
    const files = readdirSync(cacheDir, { recursive: true }).map(String);
    expect(files.filter((name) => /incomplete|00002/.test(name))).toEqual([]);
    hub.reset();
    const said: string[] = [];
    const onDownload = (path: string, bytes: number): void =>
      void said.push(`${path} ${bytes > 0}`);
    await AutoModelForCausalLM.fromPretrained('tiny/sharded', { hubUrl, cacheDir, onDownload });
    expect(said[0]).toBe(`${cut} true`);
  });

  it('name the files that a repository lacks, and those that offline mode lacks', async () => {
    await expect(resolveModel('tiny/none', { hubUrl, cacheDir: cache('z') })).rejects.toThrow(
      /neither safetensors nor GGUF/,
    );
    await expect(
      resolveModel('tiny/sharded', { cacheDir: cache('w'), offline: true }),
    ).rejects.toThrow(/not in the cache .*offline mode is on/);
  });

  it('for anything that is no id come without a request', async () => {
    for (const name of [
      './nowhere',
      '/no/such/place',
      'a/b/c',
      '../../no/such/file',
      'plain',
      'a b/c',
      'a--b/c',
      'a/b..c',
      'a/b.git',
      '.a/b',
      '-a/b',
      'a/b-',
      `a/${'b'.repeat(97)}`,
      'a/b\0',
      'a/b/../../c.gguf',
      'a/b//c.gguf',
      'a/b/c\\..\\d.gguf',
      'a/b/c\n.gguf',
    ]) {
      await expect(resolveModel(name, { hubUrl, cacheDir: cache('v') }), name).rejects.toThrow(
        FormatError,
      );
    }
    await expect(resolveModel('', { hubUrl, cacheDir: cache('v') })).rejects.toThrow(ArgumentError);
    expect(hub.requests).toEqual([]);
    writeFileSync(join(folder, 'here'), '');
    expect(await resolveModel(join(folder, 'here'))).toBe(join(folder, 'here'));
  });

  it('for an invalid revision come without a request', async () => {
    const cacheDir = cache('revisions');
    const none = [
      '',
      '../../x',
      '/etc',
      'a//b',
      'a b',
      'a~1',
      'a^',
      'a:b',
      'a?',
      'a*',
      'a[',
      'a@{1}',
    ];
    for (const revision of [...none, 'a\\b', 'a\nb', 'a.', 'a.lock', '.', 'x'.repeat(2000)]) {
      for (const offline of [true, false]) {
        const failure = resolveModel('tiny/words', { hubUrl, cacheDir, revision, offline });
        await expect(failure, revision).rejects.toThrow(/revision must be the name of a branch/);
      }
    }
    expect(hub.requests).toEqual([]);
    expect(existsSync(cacheDir)).toBe(false);
    for (const revision of ['refs/pr/1', 'v1.0', 'feature/x-y_z', fakeCommit]) {
      const path = await resolveModel('tiny/words', { hubUrl, cacheDir, revision });
      expect(path.endsWith(fakeCommit)).toBe(true);
      hub.intercept = () => true;
      expect(await resolveModel('tiny/words', { cacheDir, revision, offline: true })).toBe(path);
      hub.reset();
    }
    const refs = join(cacheDir, 'models--tiny--words', 'refs');
    expect(readdirSync(refs).sort()).toEqual(['feature', 'refs', 'v1.0']);
  });
});

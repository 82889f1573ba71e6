// A hostile Hugging Face hub: wrong lengths and hashes, names that lead out of the cache, redirects, bodies that never end or hardly
// begin. A model is resolved to files inside of the cache with the listed contents, or refused.
import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs';
import { join, sep } from 'node:path';
import { resolveModel, Tokenizer } from 'balora';
import { require } from '../finding.mjs';
import { mutateBytes, mutateJson } from '../mutations.mjs';
import { randomOf } from '../random.mjs';
import { supportModule } from '../support.mjs';

const kRepo = 'tiny/model';
const kFiles = {
  'config.json': Buffer.from('{"model_type":"llama"}'),
  'tokenizer.json': Buffer.from('{}'),
  'model.safetensors': Buffer.from('weights '.repeat(2000)),
};
const kNames = ['../planted.gguf', '../../../../planted.gguf', '/tmp/planted.gguf', 'sub/../../x.gguf', 'a\\b.gguf', 'C:x.gguf', 'x\0.gguf', 'config.json/x.gguf'];
const kTimeoutMs = 250;

/** Answers of a hostile server, by name. Each is given the honest body. */
const kAnswers = {
  status: (response, { status }) => response.writeHead(status).end('no'),
  garbage: (response, { bytes }) => response.end(bytes),
  short: (response, { body }) => {
    response.setHeader('content-length', body.length + 100);
    response.end(body);
  },
  long: (response, { body, bytes }) => response.end(Buffer.concat([body, bytes])),
  changed: (response, { changed }) => response.end(changed),
  endless: (response) => {
    const send = () => {
      while (!response.destroyed && response.write(Buffer.alloc(1 << 16, 32)));
      if (!response.destroyed) response.once('drain', send);
    };
    send();
  },
  drip: (response, { body }) => {
    let at = 0;
    const timer = setInterval(() => {
      if (response.destroyed || at >= body.length) clearInterval(timer);
      else response.write(body.subarray(at, ++at));
    }, 40);
    timer.unref();
  },
  silent: () => {},
  cut: (response, { body }) => {
    response.setHeader('content-length', body.length);
    response.write(body.subarray(0, body.length >> 1), () => response.destroy());
  },
  redirect: (response, { location }) => response.writeHead(302, { location }).end(),
  range: (response, { body }) => {
    response.writeHead(206, { 'content-range': `bytes 5-${body.length}/${body.length * 2}`, 'content-length': body.length });
    response.end(body);
  },
  encoded: (response, { body }) => {
    response.setHeader('content-encoding', 'gzip');
    response.end(body);
  },
};

const kPlaces = { info: /^\/api\/models\/[^/]+\/[^/]+(\/revision\/.+)?$/, tree: /\/tree\//, file: /\/resolve\// };

function anyAnswer(random, url) {
  const name = random.pick(Object.keys(kAnswers));
  return {
    name,
    status: random.pick([204, 301, 304, 400, 401, 403, 404, 416, 429, 500, 503, 999]),
    bytes: random.bytes(random.integer(0, 200)).toString('base64'),
    location: random.pick([`${url}/loop`, '/api/models/tiny/model', 'http://192.0.2.1/x', 'file:///etc/passwd', 'ftp://x/', '', '//', 'https://example.invalid/', random.text().replace(/[^\x20-\x7e]/g, '')]),
    times: random.pick([1, 1, 2, 1000]),
  };
}

function input(random, { hub }) {
  const place = random.pick(Object.keys(kPlaces));
  const lists = random.chance(0.5);
  return {
    answers: lists && random.chance(0.8) ? {} : { [place]: anyAnswer(random, hub.url) },
    listed: lists ? random.pick(['rows', 'name', 'all']) : null,
    name: random.pick(kNames),
    sha: random.chance(0.1) ? random.pick(['../../x', 7, null, `${'a'.repeat(40)}\n`]) : undefined,
    what: random.pick(['model', 'model', 'tokenizer']),
    seed: random.below(2 ** 31),
  };
}

/** The paths below a folder that lie outside of the cache. */
const outside = (folder) => readdirSync(folder).filter((name) => name !== 'cache');

async function run({ answers, listed, name, sha, what, seed }, { hub, honest, fakeCommit }, folder) {
  const random = randomOf(seed, 'hub', 0);
  hub.reset();
  const cacheDir = join(folder, 'cache');
  const left = new Map(Object.entries(answers).map(([place, { times }]) => [place, times]));
  hub.intercept = (path, response, request) => {
    const place = Object.keys(kPlaces).find((one) => kPlaces[one].test(path));
    const answer = answers[place];
    if (!answer || left.get(place) <= 0) return false;
    left.set(place, left.get(place) - 1);
    const body = place === 'file' ? (kFiles[path.split('/').at(-1)] ?? Buffer.from('?')) : Buffer.from(JSON.stringify(place === 'tree' ? honest : { id: kRepo, sha: fakeCommit }));
    const changed = mutateBytes(random, body);
    response.on('error', () => {});
    request.on('error', () => {});
    kAnswers[answer.name](response, { ...answer, body, changed, bytes: Buffer.from(answer.bytes, 'base64') });
    return true;
  };
  if (sha !== undefined) hub.sha = sha;
  if (listed === 'rows') hub.listed = (rows) => rows.map((row) => (random.chance(0.5) ? mutateJson(random, row) : row));
  if (listed === 'all') hub.listed = (rows) => mutateJson(random, rows);
  if (listed === 'name') hub.listed = (rows) => rows.map((row) => (row.path.endsWith('.safetensors') ? { ...row, path: name } : row));
  const options = { hubUrl: hub.url, cacheDir, accessToken: 'hf_secret', timeoutMs: kTimeoutMs };
  try {
    if (what === 'tokenizer') {
      await Tokenizer.fromPretrained(kRepo, options);
      return;
    }
    const path = await resolveModel(kRepo, options);
    require(realpathSync(path).startsWith(realpathSync(cacheDir) + sep), `the model is at ${path}`);
    for (const [file, contents] of Object.entries(kFiles)) {
      const at = join(path, file);
      require(listed !== null || !existsSync(at) || readFileSync(at).equals(contents), `${file} has other contents than were listed`);
    }
  } finally {
    hub.intercept = () => false;
    require(outside(folder).length === 0, () => `written outside of the cache: ${outside(folder)}`);
    require(!existsSync('/tmp/planted.gguf'), 'a file was written to /tmp');
  }
}

export default {
  what: 'the answers of a hostile Hugging Face hub',
  share: 1.5,
  open: async () => {
    const { FakeHub, fakeCommit, honestRow } = await supportModule('fake_hub');
    const hub = await FakeHub.start({ [kRepo]: kFiles });
    return { hub, fakeCommit, honest: Object.entries(kFiles).map(([name, data]) => honestRow(name, data)) };
  },
  close: ({ hub }) => hub.close(),
  input,
  run,
  accepts: ['ERR_NETWORK', 'ERR_IO'],
  // A text in a row that the server lists, which input() only has the seed of.
  quotes: /, got .*"\[object Object\]"/,
  perProcess: 300,
  hangSeconds: 30,
};

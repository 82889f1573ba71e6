// Folders that are pushed, with links of every kind among their files: into and out of the folder, in chains, in circles, to folders and
// pipes, and files that are exchanged for links while they are sent. Nothing that lies outside of the folder is sent.
import { execFileSync } from 'node:child_process';
import { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { FormatError } from '../../../dist/errors.js';
import { pushFolder } from '../../../dist/export/push.js';
import { require } from '../finding.mjs';

const kSecret = 'a key of nobody else';
const kNames = ['a', 'b', 'README.md', 'sub/c', 'sub/deep/d', 'sub/.hidden', 'run/log', 'x\n\u001b[2J'];
const kTargets = ['../outside/key', '../../outside/key', '../outside', '/proc/self/environ', '/dev/zero', 'a', './b', '../a', 'sub', '.', '..', 'nothing', 'sub/c', '.hidden', 'run/log', 'folder/../../outside/key'];

const contentOf = (name) => `of ${name}`;

/** A server that takes all that is pushed. */
async function openHub() {
  const hub = { requests: 0, bodies: [] };
  const server = createServer(async (request, response) => {
    hub.requests++;
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks).toString('latin1');
    hub.bodies.push(body);
    hub.onRequest?.();
    const { url } = request;
    const files = url.includes('/preupload/') ? JSON.parse(body).files.map(({ path }) => ({ path, uploadMode: 'regular' })) : undefined;
    // A connection that fetch kept would count as an open file.
    response.writeHead(200, { 'content-type': 'application/json', connection: 'close' });
    response.end(JSON.stringify({ files, success: true, commitOid: '0'.repeat(40), commitUrl: hub.url, hookOutput: '' }));
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return Object.assign(hub, { server, url: `http://127.0.0.1:${server.address().port}` });
}

function input(random) {
  const entries = kNames.filter(() => random.chance(0.6)).map((name) => ({
    name,
    kind: random.pick(['file', 'file', 'file', 'link', 'link', 'pipe']),
    target: random.pick(kTargets),
  }));
  // A link that appears when the files have been named, or with a request of the push.
  const exchanged = random.chance(0.4) ? { at: random.pick(['named', 1, 2, 3]), entry: random.below(8), folder: random.chance(0.3) } : null;
  return { entries, exchanged };
}

/** Puts a link to the secret, or to its folder, into the place of a file, or of the folder that it is in. */
function exchange(own, { name }, asFolder) {
  const at = asFolder && name.includes('/') ? dirname(join(own, name)) : join(own, name);
  renameSync(at, join(own, '..', 'away'));
  symlinkSync(join(own, '..', 'outside', at === join(own, name) ? 'key' : '.'), at);
}

async function run({ entries, exchanged }, { hub }, folder) {
  const own = join(folder, 'folder');
  mkdirSync(own);
  mkdirSync(join(folder, 'outside'));
  for (const name of ['key', ...kNames.map((one) => one.split('/').at(-1))]) writeFileSync(join(folder, 'outside', name), kSecret);
  for (const { name, kind, target } of entries) {
    const path = join(own, name);
    mkdirSync(dirname(path), { recursive: true });
    if (kind === 'file') writeFileSync(path, contentOf(name));
    else if (kind === 'link') symlinkSync(target, path);
    else execFileSync('mkfifo', [path]);
  }
  Object.assign(hub, { requests: 0, bodies: [], onRequest: undefined });
  let isExchanged = exchanged === null || entries.length === 0;
  const now = () => {
    if (isExchanged) return;
    isExchanged = true;
    exchange(own, entries[exchanged.entry % entries.length], exchanged.folder);
  };
  if (exchanged !== null && exchanged.at !== 'named') {
    hub.onRequest = () => {
      if (hub.requests === exchanged.at) now();
    };
  }
  const onFile = () => {
    if (exchanged?.at === 'named') now();
  };
  try {
    await pushFolder(own, { repo: 'me/tuned', hubUrl: hub.url, accessToken: 'hf_secret', onFile });
    const isSent = ({ name, kind }) => kind !== 'file' && !/^run|\/\./.test(name);
    const wrong = entries.find((one) => isSent(one) && (one.kind === 'pipe' || /outside|^\/|^\.\.?$|nothing/.test(one.target)));
    require(wrong === undefined || exchanged !== null, () => `${JSON.stringify(wrong)} was pushed`);
    const commit = hub.bodies.join('\n');
    const missed = entries.find(({ name, kind }) => kind === 'file' && !/^run\/|(^|\/)\./.test(name) && !commit.includes(Buffer.from(contentOf(name)).toString('base64')));
    require(missed === undefined || exchanged !== null, () => `${JSON.stringify(missed)} was not sent`);
  } catch (error) {
    if (exchanged === null && error instanceof FormatError) require(hub.requests === 0, 'something was sent before a link was refused');
    throw error;
  } finally {
    hub.server.closeAllConnections();
    // Sockets are closed a little later, and count as open files until then.
    for (let i = 0; i < 400 && process.getActiveResourcesInfo().includes('TCPSocketWrap'); i++) await sleep(5);
    const sent = hub.bodies.join('\n');
    const secret = Buffer.from(kSecret);
    // In Base64 a text has three forms, by its place in a file; here it is a whole file.
    require(!sent.includes(kSecret) && !sent.includes(secret.toString('base64')), 'a file outside of the folder was sent');
    require(!/PATH=|UEFUSD/.test(sent), "this process's environment was sent");
    for (const name of ['folder', 'outside', 'away']) rmSync(join(folder, name), { recursive: true, force: true });
  }
}

export default {
  what: 'folders with links that are pushed',
  share: 0.7,
  open: async () => ({ hub: await openHub() }),
  close: ({ hub }) => hub.server.close(),
  input,
  run,
  accepts: ['ERR_NETWORK', 'ERR_IO'],
  missing: () => (process.platform === 'linux' ? null : 'it makes pipes'),
};

// Checks that a compiler accepts every source of native/, without building anything: `CXX=clang++-16 node scripts/support/accepts.mjs`.
// The flags are CMake's own for that compiler; its warnings are errors with CI=true. What was accepted is kept in the user's cache, so
// that a source is checked again only when it, a header or the compiler has changed. The last line is the count: `N of M sources`.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { configureNative } from './build_steps.mjs';
import { chooseCompiler } from './compiler.mjs';
import { cacheFolder } from './onednn.mjs';
import { capture, inRoot, main, say } from './shell.mjs';

const kOut = 'accepts'; // below build/
const kKept = join(cacheFolder(), 'accepted.json');

/** The one source of native/platform/ that each other system compiles. */
const kOtherSystem = join('platform', process.platform === 'darwin' ? 'linux.cc' : 'macos.cc');

const digest = (text) => createHash('sha256').update(text).digest('hex');

const digests = new Map();
/** The digest of a file's content; 'none' where there is no such file. */
function digestOf(path) {
  if (!digests.has(path)) {
    try {
      digests.set(path, digest(readFileSync(path)));
    } catch (error) {
      if (error.code !== 'ENOENT') throw error;
      digests.set(path, 'none');
    }
  }
  return digests.get(path);
}

/** The digest of all that decides whether a command is accepted: the compiler, the command, and the files that it read. */
const keyOf = (compiler, command, files) =>
  digest([compiler, command, ...files.flatMap((file) => [file, digestOf(file)])].join('\n'));

/** The files in a rule of make that a compiler wrote in a folder. */
const filesOf = (rule, folder) =>
  rule
    .replace(/^.*?:\s/, '')
    .split(/(?:\\\n|\s)+/)
    .filter((name) => name !== '')
    .map((name) => resolve(folder, name));

/** Runs a command of a compilation database without writing an object: its status, what it said, and the files that it read. */
async function check({ directory, command }, rule) {
  const call = `exec ${command} -fsyntax-only -MD -MF '${rule}'`;
  const child = spawn('sh', ['-c', call], { cwd: directory, stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk) => {
      text += chunk;
    });
  }
  const status = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  const files = status === 0 ? filesOf(readFileSync(rule, 'utf8'), directory) : [];
  return { status, text, files };
}

/** The sources that were accepted before, by path: { key, files }. */
function readKept() {
  try {
    return JSON.parse(readFileSync(kKept, 'utf8'));
  } catch {
    return {}; // there is none, or one that was not written to its end
  }
}

await main(async () => {
  // Each source by itself, by the compiler itself: neither together with others nor with what another compiler precompiled.
  const defines = ['CMAKE_DISABLE_PRECOMPILE_HEADERS=ON', 'BALORA_UNITY=OFF', 'CCACHE_PROGRAM=OFF'];
  await configureNative({ out: kOut, defines: [...defines, 'BALORA_TESTS=OFF'] });
  const database = JSON.parse(readFileSync(inRoot('build', kOut, 'compile_commands.json'), 'utf8'));
  const commands = new Map(database.map((entry) => [entry.file, entry]));
  const compiler = capture(chooseCompiler().compiler.command, ['--version']);
  const sources = readdirSync(inRoot('native'), { recursive: true })
    .filter((name) => name.endsWith('.cc') && name !== kOtherSystem)
    .map((name) => inRoot('native', name));
  const kept = readKept();
  const left = [...sources];
  let [accepted, before] = [0, 0];
  const lane = async (_, number) => {
    for (let file = left.shift(); file; file = left.shift()) {
      const entry = commands.get(file);
      if (!entry) {
        say(`refused: ${file}: CMake compiles it for no target`);
        continue;
      }
      const known = kept[file];
      if (known && known.key === keyOf(compiler, entry.command, known.files)) {
        before += 1;
        continue;
      }
      const rule = inRoot('build', kOut, `files-${number}.d`);
      const { status, text, files } = await check(entry, rule);
      process.stdout.write(text);
      if (status !== 0) {
        say(`refused: ${file}`);
        delete kept[file];
        continue;
      }
      accepted += 1;
      kept[file] = { key: keyOf(compiler, entry.command, files), files };
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, lane));
  mkdirSync(dirname(kKept), { recursive: true });
  writeFileSync(kKept, JSON.stringify(kept));
  say(`${accepted + before} of ${sources.length} sources (${before} as before)`);
  return accepted + before === sources.length ? 0 : 1;
});

// A disk that fails: the n-th write, sync, rename, open or change of size under the folder of a training gives an error, or writes
// less than it was given. The run ends with an error that says so, or in the right bytes; afterwards it can be continued to these.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chooseCompiler } from '../../../scripts/support/compiler.mjs';
import { Finding, require } from '../finding.mjs';
import { lastLine, runProgram } from '../processes.mjs';

const kProgram = 'test/attack/programs/train_reporting.mjs';
const kSource = fileURLToPath(new URL('../../support/faulty_disk.c', import.meta.url));
const kLibrary = fileURLToPath(new URL('../../../build/attack/faulty_disk.so', import.meta.url));
const kErrors = { EIO: 5, EACCES: 13, EFBIG: 27, ENOSPC: 28, EROFS: 30, EDQUOT: 122, short: 0 };
const kFull = ['EFBIG', 'ENOSPC', 'EDQUOT'];

function build() {
  if (existsSync(kLibrary) && statSync(kLibrary).mtimeMs > statSync(kSource).mtimeMs) return;
  mkdirSync(dirname(kLibrary), { recursive: true });
  const { command } = chooseCompiler().compiler;
  const { status, stderr } = spawnSync(command, ['-x', 'c', '-shared', '-fPIC', '-O1', '-o', kLibrary, kSource, '-ldl'], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} cannot compile ${kSource}: ${stderr}`);
}

/** Names of files that only look complete. */
const leftovers = (folder) => (existsSync(folder) ? readdirSync(folder, { recursive: true }).filter((name) => /(^|\/)\.balora-|\.tmp$/.test(name)) : []);

function result({ code, signal, stdout, stderr, stopped }) {
  require(stopped === null, 'the run did not end');
  if (code !== 0) throw new Finding(`the run ended with ${signal ?? code}: ${(stderr || stdout).slice(-600)}`);
  return JSON.parse(lastLine(stdout));
}

async function run({ calls, number, error, last }, state, folder) {
  const output = join(folder, 'out');
  state.expected ??= result(await runProgram(kProgram, { args: [join(folder, 'straight')] })).digest;
  const env = { LD_PRELOAD: kLibrary, BALORA_FAULT: `${output} ${calls} ${number} ${kErrors[error]} ${last}` };
  const failed = result(await runProgram(kProgram, { args: [output], env }));
  if (failed.digest === undefined) {
    require(/^ERR_(DISK_FULL|IO)$/.test(failed.code ?? ''), () => `${failed.name} ${failed.code}: ${failed.message}`);
    require(failed.code !== 'ERR_IO' || !kFull.includes(error), () => `${error} was reported as ${failed.code}: ${failed.message}`);
    require(failed.message.includes('/'), () => `no file is named: ${failed.message}`);
  } else require(failed.digest === state.expected, 'the run with a fault ended in other bytes');
  const again = result(await runProgram(kProgram, { args: [output] }));
  require(again.digest === state.expected, () => `after the fault the run was not continued to the same bytes: ${JSON.stringify(again)}`);
  require(leftovers(output).length === 0, () => `temporary files are left: ${leftovers(output)}`);
}

export default {
  what: 'disks that fail at the n-th call, or write less than they were given',
  share: 1.5,
  missing: () => (process.platform === 'linux' ? null : 'needs LD_PRELOAD, which Linux has'),
  open: () => {
    build();
  },
  input: (random) => ({
    calls: random.pick(['w', 'w', 'w', 's', 'r', 'o', 't', 'wsrot']),
    number: random.pick([random.integer(1, 12), random.integer(1, 60)]),
    error: random.pick(Object.keys(kErrors)),
    last: random.pick([1, 1, 2, 1000000]),
  }),
  run,
  elsewhere: true,
  hangSeconds: 150,
  slowSeconds: 60,
};

// A file system of a few hundred KiB that a training fills, or that becomes read-only under it.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mayMount, mountSmall, remount, unmount } from '../../../scripts/support/mount.mjs';
import { Finding, require } from '../finding.mjs';
import { lastLine, runProgram } from '../processes.mjs';

const kProgram = 'test/attack/programs/train_reporting.mjs';

const result = ({ code, signal, stdout, stderr }) => {
  if (code !== 0) throw new Finding(`the run ended with ${signal ?? code}: ${(stderr || stdout).slice(-600)}`);
  return JSON.parse(lastLine(stdout));
};

async function run({ kiB, readOnlyAfterMs }, state, folder) {
  state.expected ??= result(await runProgram(kProgram, { args: [join(folder, 'straight')] })).digest;
  const disk = join(folder, 'disk');
  mkdirSync(disk);
  require(mountSmall(disk, kiB), 'a small disk cannot be mounted');
  try {
    writeFileSync(join(disk, 'other.txt'), 'mine');
    const timer = readOnlyAfterMs === null ? null : setTimeout(() => remount(disk, 'ro'), readOnlyAfterMs);
    const failed = result(await runProgram(kProgram, { args: [join(disk, 'out')] }));
    clearTimeout(timer);
    if (failed.digest === undefined) {
      require(/^ERR_(DISK_FULL|IO)$/.test(failed.code ?? ''), () => `${failed.name} ${failed.code}: ${failed.message}`);
      require(failed.message.includes(disk), () => `no file is named: ${failed.message}`);
    } else require(failed.digest === state.expected, 'the run ended in other bytes');
    remount(disk, 'rw,size=64m');
    const again = result(await runProgram(kProgram, { args: [join(disk, 'out')] }));
    require(again.digest === state.expected, () => `with space again the run was not continued to the same bytes: ${JSON.stringify(again)}`);
  } finally {
    unmount(disk);
  }
}

export default {
  what: 'disks of a few hundred KiB, and disks that become read-only',
  missing: () => (mayMount() ? null : 'needs the right to mount a file system'),
  input: (random) => ({
    kiB: random.pick([random.integer(8, 120), random.integer(8, 400)]),
    readOnlyAfterMs: random.chance(0.3) ? random.integer(100, 900) : null,
  }),
  run,
  elsewhere: true,
  hangSeconds: 150,
  slowSeconds: 60,
};

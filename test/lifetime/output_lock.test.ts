// The lock of an output folder: of processes that claim it at the same moment exactly one has it, whether the folder is new or its
// lock is that of a process that died; and a worker that is terminated leaves no lock behind, although its process goes on.
import { type ChildProcess, fork, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { afterAll, expect, it } from 'vitest';
import { claimOutput } from '../../lib/train/output.ts';

const kRaces = 300;
const kClaimants = 3;
const program = (name: string): string =>
  fileURLToPath(new URL(`programs/${name}`, import.meta.url));

const folder = mkdtempSync(join(tmpdir(), 'balora-races-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const answer = async (child: ChildProcess): Promise<string> =>
  (await once(child, 'message'))[0] as string;

const ask = (children: readonly ChildProcess[], message: string): Promise<string[]> =>
  Promise.all(
    children.map((child) => {
      const answered = answer(child);
      child.send(message);
      return answered;
    }),
  );

it.each(['new', 'of a dead process'])(
  `of ${kClaimants} claimants one has a folder whose lock is %s`,
  async (kind) => {
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    const children = Array.from({ length: kClaimants }, () => fork(program('claim_output.mjs')));
    try {
      await Promise.all(children.map(answer));
      for (let race = 0; race < kRaces; race++) {
        const path = join(folder, `${kind}-${race}`);
        if (kind !== 'new') {
          mkdirSync(join(path, 'run'), { recursive: true });
          const holder = { pid: dead, host: hostname(), started: '1' };
          writeFileSync(join(path, 'run/lock'), JSON.stringify(holder));
        }
        const answers = await ask(children, path);
        const lost = answers.filter((text) => text !== 'won');
        expect(lost, `race ${race}: ${answers.join(' | ')}`).toHaveLength(kClaimants - 1);
        for (const text of lost) expect(text).toMatch(/in use by process|are claiming/);
        await ask(children, 'release');
      }
    } finally {
      for (const child of children) child.kill();
    }
  },
);

it('a terminated worker leaves no lock, and a living one has its folder', async () => {
  const path = join(folder, 'worker');
  const worker = new Worker(program('claim_in_worker.mjs'), { workerData: path });
  await once(worker, 'message');
  const claim = () => claimOutput(path, { overwrite: false, resume: true });
  await expect(claim()).rejects.toThrow(/in use by process/);
  await worker.terminate();
  await (await claim()).release();
});

// The process in which PyTorch's side of a row runs.

import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { kGivenEnvironment } from '../../../bench/harness/environment.ts';
import { runRecipe } from '../../../bench/harness/torch.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-python-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

it('has none of the variables that the library sets for its own threads', async () => {
  const python = join(folder, 'python');
  const answer =
    '{"version": "\'"$GOMP_SPINCOUNT"\'", "threads": 1, "peakBytes": 1, "seconds": [1]}';
  await writeFile(python, `#!/bin/sh\necho '${answer}'\n`);
  await chmod(python, 0o755);
  const before = process.env.GOMP_SPINCOUNT;
  process.env.GOMP_SPINCOUNT = '12345';
  try {
    const { version } = await runRecipe(python, folder, {});
    expect(version).toBe(kGivenEnvironment.GOMP_SPINCOUNT ?? '');
  } finally {
    if (before === undefined) delete process.env.GOMP_SPINCOUNT;
    else process.env.GOMP_SPINCOUNT = before;
  }
});

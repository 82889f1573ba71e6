// Errors by code: each code has an error with its message, and a row in docs/errors.md. Public functions raise them, except for a
// full disk and a code of a later addon: these two errors are made by hand here (a limit on the size of files causes the former
// for real in test/lifetime/resume.test.ts).
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { withAbort } from '../lib/abort.ts';
import { customOp } from '../lib/autograd.ts';
import { BaloraError, type ErrorCode, errorFromCode } from '../lib/errors.ts';
import { gradcheck } from '../lib/gradcheck.ts';
import { diskError } from '../lib/io/files.ts';
import { resolveModel } from '../lib/io/hub.ts';
import { SafetensorsFile, saveSafetensors } from '../lib/io/safetensors.ts';
import { div, mul, zeros } from '../lib/ops/index.ts';
import { setAnomalyMode, setMemoryLimit, synchronize } from '../lib/runtime.ts';
import { type Tensor, tensor } from '../lib/tensor.ts';
import { notFinite, valuesOf } from '../lib/train/failure.ts';

const kFolder = mkdtempSync(join(tmpdir(), 'balora-errors-'));
afterAll(() => rmSync(kFolder, { recursive: true }));

const wrongSquare = (x: Tensor) =>
  customOp(
    {
      name: 'square',
      forward: ([t]) => ({ outputs: [mul(t as Tensor, t as Tensor)], saved: null }),
      backward: ([dy]) => [dy as Tensor],
    },
    [x],
  );

/** For each code, a function that fails with it, and a pattern of the message. */
const kWays: Record<ErrorCode, [fail: () => unknown, end: RegExp]> = {
  ERR_ARGUMENT: [() => tensor([[1], [1, 2]]), /ragged; give every array/],
  ERR_UNSUPPORTED: [() => tensor([1], { device: 'abacus' }), /abacus/],
  ERR_FORMAT: [
    () => {
      writeFileSync(join(kFolder, 'damaged'), 'no tensors');
      return SafetensorsFile.open(join(kFolder, 'damaged'));
    },
    /damaged at byte 0: header length: .*; check that this is a safetensors file$/,
  ],
  ERR_OUT_OF_MEMORY: [
    async () => {
      setMemoryLimit(2 ** 20);
      try {
        await zeros([1000, 1000]).data();
      } finally {
        setMemoryLimit(0);
      }
    },
    /^full: out of memory: 4000000 bytes wanted.*; use a smaller batch/,
  ],
  ERR_NOT_FINITE: [
    async () => {
      const before = setAnomalyMode(true);
      try {
        div(tensor([1]), tensor([0]));
        await synchronize();
      } finally {
        setAnomalyMode(before);
      }
    },
    /^div: made a value that is not finite.*; lower the learning rate, or look at this op's inputs$/m,
  ],
  ERR_DISK_FULL: [
    () => {
      throw diskError('file', Object.assign(new Error('full'), { code: 'ENOSPC' }));
    },
    /no space left on the disk \(ENOSPC\); free space, or write to another place$/,
  ],
  ERR_IO: [
    () => saveSafetensors(join(kFolder, 'nowhere', 'file'), { x: tensor([1]) }),
    /cannot be created: .*; check that the folder exists/,
  ],
  ERR_FILE_CHANGED: [
    async () => {
      const path = join(kFolder, 'weights');
      await saveSafetensors(path, { x: tensor([1, 2]) });
      const file = SafetensorsFile.open(path);
      truncateSync(path, 20);
      await file.read('x').data();
    },
    /weights: was changed while its contents were in use: its size went from \d+ to 20 bytes.*; restore the file .* rename it$/,
  ],
  ERR_NETWORK: [
    () => resolveModel('nobody/nothing', { offline: true, cacheDir: kFolder }),
    /offline mode is on; check the connection/,
  ],
  ERR_ABORTED: [
    () => withAbort(AbortSignal.abort(), () => zeros([2])).data(),
    /^download: operand 0 has no value, the work that makes it was aborted/,
  ],
  ERR_GRADIENT: [
    () => gradcheck(wrongSquare, [tensor([1, 2], { dtype: 'f64' })]),
    /mend the backward function/,
  ],
  ERR_NATIVE: [
    () => {
      throw errorFromCode('ERR_OF_A_LATER_ADDON', 'a kernel failed');
    },
    /^a kernel failed$/,
  ],
};

describe('every code', () => {
  it.each(Object.entries(kWays))('%s is raised with its message', async (code, [fail, end]) => {
    const error = await (async () => fail())().then(
      () => expect.unreachable(),
      (thrown: unknown) => thrown,
    );
    expect(error).toBeInstanceOf(BaloraError);
    expect(error).toMatchObject({ code, message: expect.stringMatching(end) });
  });

  it('has a row in docs/errors.md', () => {
    const page = readFileSync('docs/errors.md', 'utf8');
    const rows = [...page.matchAll(/^\| `(ERR_\w+)` \|/gm)].map(([, code]) => code);
    expect(rows).toEqual(Object.keys(kWays));
  });
});

it('a loss that is not finite has the code ERR_NOT_FINITE', () => {
  const tried = { learningRate: 1, maxGradNorm: 0, dtype: 'bf16' as const };
  const values = valuesOf({ loss: Number.NaN, taskLoss: Number.NaN, terms: {} }, 1);
  const error = notFinite(3, values, { tried });
  expect(error).toMatchObject({
    code: 'ERR_NOT_FINITE',
    message: expect.stringMatching(
      /^step 3: not finite \(taskLoss NaN, gradNorm 1\).*after step 2; lower.*maxGradNorm \(now 0\).*dtype f32 \(now bf16\)/,
    ),
  });
});

it('the advice is on the first line, before the place of the call', () => {
  const { message } = errorFromCode('ERR_OUT_OF_MEMORY', 'op: out of memory\n  enqueued at x');
  expect(message).toMatch(/^op: out of memory; use .*\n {2}enqueued at x$/);
});

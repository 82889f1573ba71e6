// Whether the files are still what they were whose pages a model's weights are: asked without reading them.
import {
  appendFileSync,
  closeSync,
  cpSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  statSync,
  utimesSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { baseChange } from '../../lib/models/base_files.ts';
import { demoCheckpoint } from '../../lib/models/demo_checkpoint.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { noGrad } from '../../lib/tensor.ts';

/** Inverts the last byte of a file. */
function invertLast(path: string): void {
  const file = openSync(path, 'r+');
  const at = statSync(path).size - 1;
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, at);
  writeSync(file, Buffer.of(~(byte[0] as number) & 255), 0, 1, at);
  closeSync(file);
}

it('the question after the files of a base reads no bytes: a hidden change is found by what computes with them', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'balora-base-files-'));
  try {
    cpSync(demoCheckpoint, folder, { recursive: true });
    const [name] = readdirSync(folder).filter((each) => each.endsWith('.safetensors'));
    const weights = join(folder, name as string);
    const time = new Date('2020-01-01T00:00:00Z'); // a whole second, which can be put back
    utimesSync(weights, time, time);
    using model = await AutoModelForCausalLM.fromPretrained(folder, { dtype: 'bf16' });
    expect(baseChange(model)).toBeNull();
    invertLast(weights);
    expect(baseChange(model)).toMatchObject({
      ...{ code: 'ERR_FILE_CHANGED', message: expect.stringMatching(/time of modification/) },
    });
    utimesSync(weights, time, time);
    expect(baseChange(model)).toBeNull();
    const batch = {
      inputIds: Int32Array.of(1, 2),
      positions: Int32Array.of(0, 1),
      cuSeqlens: Int32Array.of(0, 2),
    };
    const hidden = noGrad(() => model.forward(batch));
    await expect(hidden.data()).rejects.toMatchObject({
      ...{ code: 'ERR_FILE_CHANGED', message: expect.stringMatching(/are others/) },
    });
    appendFileSync(weights, 'x');
    expect(baseChange(model)).toMatchObject({ message: expect.stringMatching(/its size went/) });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

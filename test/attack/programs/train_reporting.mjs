// Trains an adapter on a small model into the folder of its first argument, from the last checkpoint where there is one, and prints
// one line of JSON: the digest of the result, or the error.
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { smallTrainer } from '../../lifetime/programs/small_trainer.mjs';

const [output] = process.argv.slice(2);
try {
  const trainer = await smallTrainer({ output, maxSteps: 8, saveSteps: 3 });
  for await (const _event of trainer.run());
  const bytes = await readFile(join(output, 'adapter_model.safetensors'));
  console.log(JSON.stringify({ digest: createHash('sha256').update(bytes).digest('hex') }));
} catch (error) {
  const { name, code, message, stack } = error;
  console.log(JSON.stringify({ name, code, message, stack }));
}

// Trains an adapter on a small model into the folder of its first argument, from the last checkpoint where there is one, and
// prints a line per step. It may be killed at any moment. At the end it prints "done" and a digest of the result.
//
//   node train_run.mjs FOLDER [STEPS [arithmetic|evaluated|shuffled|seq2seq]]
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { smallTrainer } from './small_trainer.mjs';

const [output, steps = '40', source = 'arithmetic'] = process.argv.slice(2);
const trainer = await smallTrainer({ source, output, maxSteps: Number(steps) });
for await (const event of trainer.run()) {
  if (event.type === 'step') console.log(`step ${event.record.step}`);
}
const bytes = await readFile(join(output, 'adapter_model.safetensors'));
console.log(`done ${createHash('sha256').update(bytes).digest('hex')}`);

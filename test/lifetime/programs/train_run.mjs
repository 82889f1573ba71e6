// Trains an adapter on a small model into the folder of its first argument, resuming if there is something to resume,
// and prints a line a step. May be killed at any moment. Prints "done" and a digest of the result at the end.
//
//   node train_run.mjs FOLDER [STEPS [arithmetic|shuffled|seq2seq]]
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

// Runs the training of train_run.mjs, but after an event no file can grow beyond 512 bytes, as on a full disk. Prints the error
// as JSON.
//
//   node full_disk.mjs FOLDER STEPS EVENT STEP
import { execFileSync } from 'node:child_process';
import { smallTrainer } from './small_trainer.mjs';

const [output, steps, type, step] = process.argv.slice(2);
process.on('SIGXFSZ', () => {}); // writes beyond the limit then fail with EFBIG
const limit = (bytes) =>
  execFileSync('prlimit', ['--pid', String(process.pid), `--fsize=${bytes}:unlimited`]);

const trainer = await smallTrainer({
  output,
  maxSteps: Number(steps),
  callbacks: [
    (event) => {
      if (event.type === type && (event.record?.step ?? event.step) === Number(step)) limit(512);
    },
  ],
});
let seen = 0;
try {
  for await (const event of trainer.run()) if (event.type === 'step') seen = event.record.step;
  console.log(JSON.stringify({ seen, code: null, message: 'it went well' }));
} catch (error) {
  console.log(JSON.stringify({ seen, code: error.code, message: error.message }));
}

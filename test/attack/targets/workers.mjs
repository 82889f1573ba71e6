// Workers that end in the middle of work, in any way and at any moment, beside a main thread that goes on computing.
import { require } from '../finding.mjs';
import { lastLine, runProgram } from '../processes.mjs';

const kWorkers = 10;

async function run({ first }) {
  const args = [`${first}`, `${first + kWorkers - 1}`];
  const { code, signal, stdout, stderr } = await runProgram('test/lifetime/programs/worker_endings.mjs', { args, seconds: 120 });
  const last = lastLine(stdout);
  require(code === 0 && last.startsWith(`${kWorkers} of ${kWorkers}`), () => `ended with ${signal ?? code} in ${last}\n${stderr.slice(-500)}`);
}

export default {
  what: 'workers that end at any moment',
  input: (random) => ({ first: 1 + random.below(2 ** 30) }),
  run,
  elsewhere: true,
  hangSeconds: 60,
};

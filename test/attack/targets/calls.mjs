// Thousands of calls of the addon's own functions with valid and arbitrary arguments, of which none may end the process.
import { lastLine, runProgram } from '../processes.mjs';
import { require } from '../finding.mjs';

const kCalls = 600;

async function run({ seed }) {
  const args = [`${seed}`, `${kCalls}`, 'cpu'];
  const { code, signal, stdout, stderr } = await runProgram('test/lifetime/programs/any_calls.mjs', { args, env: { BALORA_EXACT_BLOCKS: '1' } });
  const last = lastLine(stdout);
  require(code === 0 && last.startsWith('done'), () => `ended with ${signal ?? code} in ${last}\n${stderr.slice(-500)}`);
  require(stderr === '', () => `printed ${stderr.slice(0, 300)}`);
}

export default {
  what: "sequences of calls of the addon's functions",
  input: (random) => ({ seed: random.below(2 ** 31) }),
  run,
  elsewhere: true,
  hangSeconds: 60,
};

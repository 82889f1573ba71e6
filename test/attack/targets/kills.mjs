// Trainings that are killed at random moments and continued, which must end in the same bytes as one that was not.
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { require } from '../finding.mjs';
import { lastLine, runProgram } from '../processes.mjs';

const kProgram = 'test/lifetime/programs/train_run.mjs';
const kSources = { arithmetic: 60, shuffled: 20, seq2seq: 20 };

/** The last line of a run that nothing disturbs. */
async function straight(state, source, folder) {
  if (state[source] === undefined) {
    const output = join(folder, 'straight');
    const { code, stdout, stderr } = await runProgram(kProgram, { args: [output, `${kSources[source]}`, source] });
    require(code === 0, () => `an undisturbed run ended with ${code}: ${stderr.slice(-500)}`);
    state[source] = lastLine(stdout);
    rmSync(output, { recursive: true, force: true });
  }
  return state[source];
}

async function run({ source, delays }, state, folder) {
  const expected = await straight(state, source, folder);
  const args = [join(folder, 'killed'), `${kSources[source]}`, source];
  for (const delay of [...delays, null]) {
    let armed = delay === null;
    const onLine = (_line, kill) => {
      if (armed) return;
      armed = true; // the first step of the process is done, so that each process makes progress
      setTimeout(() => kill('SIGKILL'), delay);
    };
    const { code, signal, stdout, stderr } = await runProgram(kProgram, { args, onLine });
    if (signal === 'SIGKILL' && delay !== null) continue;
    require(code === 0, () => `a continued run ended with ${signal ?? code}: ${stderr.slice(-800)}`);
    require(lastLine(stdout) === expected, 'the continued run ended in other bytes');
    break;
  }
}

export default {
  what: 'trainings that are killed and continued',
  share: 1.5,
  input: (random) => ({
    source: random.pick(Object.keys(kSources)),
    delays: random.several(1, 4, () => random.below(1200) / 10),
  }),
  run,
  elsewhere: true,
  hangSeconds: 200,
  slowSeconds: 60,
};

// Programs that a target starts as processes of their own.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { supportModule } from './support.mjs';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));

/**
 * Runs a program with this Node until it ends or its time is over (test/support/child.ts).
 * @param program path from the top of the clone
 * @param options args, env, seconds; onLine(line, kill): called with each line of its output
 * @returns { code, signal, stdout, stderr, stopped }; stopped is 'slow' if its time was over, else null
 */
export async function runProgram(program, { seconds = 150, ...options } = {}) {
  const { runProgram: run } = await supportModule('child');
  return run(program, { ...options, cwd: kRoot, hangMs: Number.POSITIVE_INFINITY, limitMs: 1000 * seconds });
}

/** The last line of an output. */
export const lastLine = (text) => text.trimEnd().split('\n').at(-1) ?? '';

/**
 * Runs a command of balora until it ends.
 * @param args its arguments
 * @param options killAfter: milliseconds after which it is killed; null: it is not
 * @returns { code, signal, stderr }
 */
export function runCommand(args, { killAfter = null } = {}) {
  const child = spawn(process.execPath, ['dist/cli/main.js', ...args], { cwd: kRoot, stdio: ['ignore', 'ignore', 'pipe'] });
  const timer = killAfter === null ? undefined : setTimeout(() => child.kill('SIGKILL'), killAfter);
  let stderr = '';
  child.stderr.on('data', (text) => {
    stderr += text;
  });
  return new Promise((done, fail) => {
    child.once('error', fail);
    child.once('close', (code, signal) => {
      clearTimeout(timer);
      done({ code, signal, stderr });
    });
  });
}

// Programs that a target starts as processes of their own.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));

/**
 * Runs a program with this Node until it ends or its time is over.
 * @param program path from the top of the clone
 * @param options args, env, seconds; onLine(line, kill): called with each line of its output
 * @returns { code, signal, stdout, stderr, timedOut }
 */
export function runProgram(program, { args = [], env = {}, seconds = 150, onLine = () => {} } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [program, ...args], {
      cwd: kRoot,
      env: { ...process.env, NODE_OPTIONS: '', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let [stdout, stderr, from, timedOut] = ['', '', 0, false];
    child.stdout.setEncoding('utf8').on('data', (text) => {
      stdout += text;
      for (let end = stdout.indexOf('\n', from); end >= 0; end = stdout.indexOf('\n', from)) {
        onLine(stdout.slice(from, end), (signal) => child.kill(signal));
        from = end + 1;
      }
    });
    child.stderr.setEncoding('utf8').on('data', (text) => {
      stderr += text;
    });
    const timer = setTimeout(() => {
      timedOut = true;
      child.kill('SIGKILL');
    }, 1000 * seconds);
    child.once('error', reject);
    child.once('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, stdout, stderr, timedOut });
    });
  });
}

/** The last line of an output. */
export const lastLine = (text) => text.trimEnd().split('\n').at(-1) ?? '';

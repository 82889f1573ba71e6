// Runs a program as a process of its own and tells apart how it ended: an exit status, a signal, a hang (it neither
// printed nor used the processor for a while), or a run that is alive but takes longer than it may.
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));
const kPollMs = 250;
const kTicksPerSecond = 100; // USER_HZ, 100 on every Linux

export interface ChildResult {
  /** Exit status, or null when a signal ended it. */
  code: number | null;
  signal: NodeJS.Signals | null;
  /** Set when this harness ended it: silent and idle, or over the time it may take. */
  stopped: 'hang' | 'slow' | null;
  stdout: string;
  stderr: string;
}

export interface ChildOptions {
  args?: string[];
  nodeArgs?: string[];
  env?: Record<string, string>;
  /** Silent and without processor time for this long: a hang. */
  hangMs?: number;
  /** Longer than this, however busy: slow. */
  limitMs?: number;
  /** Called with each line of stdout; may send a signal. */
  onLine?: (line: string, kill: (signal: NodeJS.Signals) => void) => void;
}

/** Processor seconds of a process so far, all threads; null once it is gone or where /proc is not. */
function processorSeconds(pid: number): number | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) / kTicksPerSecond;
  } catch {
    return null;
  }
}

/** @param program path from the repository's root */
export function runProgram(program: string, options: ChildOptions = {}): Promise<ChildResult> {
  const { args = [], nodeArgs = [], env = {}, hangMs = 10_000, limitMs = 120_000 } = options;
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...nodeArgs, program, ...args], {
      cwd: kRoot,
      env: { ...process.env, NODE_OPTIONS: '', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const started = performance.now();
    let aliveAt = started;
    let seconds = 0;
    let stopped: ChildResult['stopped'] = null;
    let stdout = '';
    let stderr = '';
    let lineStart = 0;
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      aliveAt = performance.now();
      for (
        let end = stdout.indexOf('\n', lineStart);
        end >= 0;
        end = stdout.indexOf('\n', lineStart)
      ) {
        options.onLine?.(stdout.slice(lineStart, end), (signal) => child.kill(signal));
        lineStart = end + 1;
      }
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
      aliveAt = performance.now();
    });
    const watch = setInterval(() => {
      const now = performance.now();
      const used = processorSeconds(child.pid ?? 0) ?? 0;
      // Node's own timers and this poll cost less than a tenth of this.
      if (used - seconds > (0.05 * kPollMs) / 1000) aliveAt = now;
      seconds = used;
      if (now - aliveAt > hangMs) stopped = 'hang';
      else if (now - started > limitMs) stopped = 'slow';
      if (stopped) child.kill('SIGKILL');
    }, kPollMs);
    child.once('error', (error) => {
      clearInterval(watch);
      reject(error);
    });
    child.once('close', (code, signal) => {
      clearInterval(watch);
      resolve({ code, signal, stopped, stdout, stderr });
    });
  });
}

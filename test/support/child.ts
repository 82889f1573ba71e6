// Runs a program as a process of its own and distinguishes its endings: an exit status, a signal, a hang (it neither printed nor
// used the processor for a while), or a run that exceeds its time limit.
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { kHangLimitMs } from './limits.ts';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));
const kPollMs = 250;
const kTicksPerSecond = 100; // USER_HZ, 100 on every Linux

export interface ChildResult {
  /** Exit status; null where a signal ended the process. */
  code: number | null;
  signal: NodeJS.Signals | null;
  /** Set where this function killed the process: it was silent and idle ('hang'), or exceeded its time limit ('slow'). */
  stopped: 'hang' | 'slow' | null;
  stdout: string;
  stderr: string;
}

export interface ChildOptions {
  args?: string[];
  nodeArgs?: string[];
  env?: Record<string, string>;
  /** Variables of this process that the program does not get. */
  without?: readonly string[];
  /** Working directory; default: the top of the clone. */
  cwd?: string;
  /** Milliseconds without output and processor time that count as a hang. */
  hangMs?: number;
  /** Time limit in milliseconds. */
  limitMs?: number;
  /** Called with each line of stdout, and a function that sends a signal. */
  onLine?: (line: string, kill: (signal: NodeJS.Signals) => void) => void;
}

/** Processor seconds of all threads of a process; null once it has ended, or without /proc. */
function processorSeconds(pid: number): number | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) / kTicksPerSecond;
  } catch {
    return null;
  }
}

/** Runs a program with this Node. @param program path from the working directory */
export function runProgram(program: string, options: ChildOptions = {}): Promise<ChildResult> {
  const { args = [], nodeArgs = [], env = {}, without = [], cwd = kRoot } = options;
  const own = Object.entries(process.env).filter(([name]) => !without.includes(name));
  const { hangMs = 30_000, limitMs = 0.9 * kHangLimitMs } = options;
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...nodeArgs, program, ...args], {
      cwd,
      env: { ...Object.fromEntries(own), NODE_OPTIONS: '', ...env },
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
      // Node's timers and this poll use less than a tenth of this.
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

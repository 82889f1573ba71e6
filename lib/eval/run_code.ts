/**
 * Running of programs that a model wrote, in Python. Each has a process of its own with limits on time, memory, processes and files, in
 * namespaces and a root in which there is no network, no other process, no file but Python's, and nothing to write to but an empty folder
 * in memory. Its test runs in a second interpreter, which has the verdict. That keeps mistakes away from the machine, and the verdict from
 * the program; the kernel is one for all, so it is no jail for a program that attacks that.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { UnsupportedError } from '../errors.ts';
import { type CallTable, checkCall, kCall, wholeNumber } from '../options/call.ts';
import { kJail } from './program_jail.ts';
import { kProgramSide, kTestSide } from './program_sides.ts';

/** How a program ended: without an error, with one (or by a limit on memory or files), or not within its time. */
export type Outcome = 'passed' | 'failed' | 'timed out';

/** Options of {@link openCodeRunner}. */
export interface CodeRunnerOptions {
  /**
   * Whether programs run without namespaces where none can be made: with limits on time, memory and the size of files, but with the
   * network, the user's files and processes, and so with ways to the verdict. Default false.
   */
  readonly unsafe?: boolean;
  /** Seconds that a program may take, a whole number. Default 10. */
  readonly seconds?: number;
  /** Memory of a program in bytes, with its processes and files; that of each process where there is no control group. Default 1 GiB. */
  readonly memoryBytes?: number;
}

/** The kinds of the options. */
const kTable: CallTable<CodeRunnerOptions> = {
  unsafe: kCall.boolean,
  seconds: wholeNumber({ least: 1, most: 3600 }),
  memoryBytes: wholeNumber({ least: 2 ** 26 }),
};

/** The test that a program is run with, and the signal that ends it. */
export interface ProgramTest {
  /** The test, as text in Python: it uses the names that the program defines. Default: none, so that the program has to end alone. */
  readonly test?: string;
  /**
   * A program that passes, of which nothing but the names is used: those that it defines are the program's in the test, and those that it
   * imports are imported there. Default: all names that the program defines, but those of Python's own functions.
   */
  readonly reference?: string;
  readonly signal?: AbortSignal | undefined;
}

/** Runs programs. */
export interface CodeRunner {
  /** Whether programs run in namespaces and a root of their own. */
  readonly isIsolated: boolean;
  /** Sentences about what is not kept from programs on this machine; empty where all is that can be. */
  readonly missing: readonly string[];
  /** Runs a program with its test, and waits for the end. @throws the signal's reason; UnsupportedError where it cannot be started */
  run(program: string, test?: ProgramTest): Promise<Outcome>;
}

/** Largest size of a file that a program writes, and of all that it writes in memory, in bytes. */
const kFileBytes = 16 * 2 ** 20;
const kFolderBytes = 64 * 2 ** 20;
const kOpenFiles = 64;
const kProcesses = 64;

/** Time for the program that does nothing, which a busy machine may take. */
const kOpenSeconds = 60;

/**
 * Prepares the running of programs, by running one that does nothing.
 * @throws UnsupportedError where there is no python3, where that one does not end well, or where no namespaces can be made and that is
 * not allowed
 */
export async function openCodeRunner(options: CodeRunnerOptions = {}): Promise<CodeRunner> {
  checkCall('openCodeRunner', options, kTable);
  const { unsafe = false, seconds = 10, memoryBytes = 2 ** 30 } = options;
  const opened = async (isIsolated: boolean): Promise<CodeRunner> => {
    const settings = { isIsolated, seconds, memoryBytes };
    const { outcome, ungrouped } = await runProgram('', {}, { ...settings, seconds: kOpenSeconds });
    if (outcome !== 'passed') {
      const how = outcome === 'failed' ? 'failed' : `did not end in ${kOpenSeconds} seconds`;
      throw new UnsupportedError(
        `a program that does nothing ${how}${isIsolated ? ' in namespaces' : ''} with python3`,
      );
    }
    return {
      isIsolated,
      missing: missingOf(isIsolated, ungrouped),
      run: async (program, test = {}) => (await runProgram(program, test, settings)).outcome,
    };
  };
  let failure: UnsupportedError;
  try {
    return await opened(true);
  } catch (error) {
    if (!(error instanceof UnsupportedError)) throw error;
    failure = error;
  }
  if (!unsafe) {
    throw new UnsupportedError(
      `${failure.message}; so programs cannot be kept from the network and your files here: run the file of samples elsewhere, ` +
        'or allow it with unsafe (--unsafe)',
    );
  }
  return opened(false);
}

/** Sentences about what is not kept from programs. @param ungrouped why there is no control group, or null */
function missingOf(isIsolated: boolean, ungrouped: string | null): readonly string[] {
  const missing: string[] = [];
  if (!isIsolated) {
    missing.push(
      'no namespaces can be made here: programs have the network, your files and your processes, among which is the one with the verdict',
    );
  }
  if (ungrouped !== null) {
    const processes = isIsolated
      ? `each of the ${kProcesses} processes of a program`
      : 'each process of a program, whose number has no limit';
    missing.push(
      `no control group can be made here (${ungrouped}): the limit of memory is one of ${processes}`,
    );
  }
  return missing;
}

type RunSettings = Required<Omit<CodeRunnerOptions, 'unsafe'>> & { readonly isIsolated: boolean };

/** The outcome of a program, and why there was no control group; null: there was one. */
interface ProgramRun {
  readonly outcome: Outcome;
  readonly ungrouped: string | null;
}

async function runProgram(
  program: string,
  test: ProgramTest,
  settings: RunSettings,
): Promise<ProgramRun> {
  test.signal?.throwIfAborted();
  const folder = await mkdtemp(join(tmpdir(), 'balora-code-'));
  try {
    return await runIn(folder, program, test, settings);
  } finally {
    await rm(folder, { recursive: true, force: true, maxRetries: 3 });
  }
}

async function runIn(
  folder: string,
  program: string,
  { test = '', reference = '', signal }: ProgramTest,
  { isIsolated, seconds, memoryBytes }: RunSettings,
): Promise<ProgramRun> {
  const options = {
    isolated: isIsolated,
    // An empty folder: without namespaces the work folder, else where the root is built.
    folder,
    seconds,
    // Memory of all processes of the program together where there is a control group, and address space of each.
    memory: memoryBytes,
    fileBytes: kFileBytes,
    folderBytes: kFolderBytes,
    openFiles: kOpenFiles,
    processes: kProcesses,
    testSide: kTestSide,
    programSide: kProgramSide,
  };
  // The environment may have keys and tokens.
  const { PATH = '' } = process.env;
  const child = spawn('python3', ['-I', '-c', kJail, JSON.stringify(options)], {
    cwd: folder,
    env: { PATH, HOME: folder, TMPDIR: folder, LANG: 'C.UTF-8' },
    stdio: ['pipe', 'pipe', 'pipe', 'pipe'],
    detached: true,
  });
  const { out, err, why } = await finished(child, {
    input: JSON.stringify({ program, test, reference }),
    limitMs: seconds * 1000,
    signal,
  });
  if (why === 'aborted') throw (signal as AbortSignal).reason;
  const [ungrouped = '', ready, verdict] = out.split('\n');
  if (ready !== 'ready') {
    if (why === 'timed out') return { outcome: why, ungrouped: null };
    const said = err.trim().split('\n').at(-1) || 'it ended at once';
    throw new UnsupportedError(
      isIsolated
        ? `no namespaces can be made for python3 (${said})`
        : `python3 cannot be started (${said})`,
    );
  }
  const passed = verdict === 'passed' ? 'passed' : 'failed';
  return { outcome: why === 'timed out' ? why : passed, ungrouped: JSON.parse(ungrouped) };
}

/** Longest beginning of the output that is looked at. */
const kOutput = 4096;

/** Time that the process has to end what it started. */
const kEndMs = 5000;

interface Finished {
  readonly out: string;
  readonly err: string;
  readonly why: 'ended' | 'timed out' | 'aborted';
}

/** Writes the input, and waits until the process has ended, which it does when the time is over or the signal aborts. */
function finished(
  child: ChildProcess,
  { input, limitMs, signal }: { input: string; limitMs: number; signal: AbortSignal | undefined },
): Promise<Finished> {
  return new Promise((resolve) => {
    let [out, err, why] = ['', '', 'ended' as Finished['why']];
    let killer: NodeJS.Timeout | undefined;
    const end = (reason: Finished['why']): void => {
      why = reason;
      // At the end of this pipe the process ends those that it started, and itself.
      child.stdio[3]?.destroy();
      killer ??= setTimeout(() => killGroup(child), kEndMs);
    };
    const onAbort = (): void => end('aborted');
    const timer = setTimeout(() => end('timed out'), limitMs);
    signal?.addEventListener('abort', onAbort, { once: true });
    child.stdout?.on('data', (some: Buffer) => {
      if (out.length < kOutput) out += some.toString('latin1');
    });
    child.stderr?.on('data', (some: Buffer) => {
      if (err.length < kOutput) err += some.toString('utf8');
    });
    const done = (): void => {
      clearTimeout(timer);
      clearTimeout(killer);
      signal?.removeEventListener('abort', onAbort);
      resolve({ out, err, why });
    };
    child.on('error', (error) => {
      err += error.message;
      if (child.pid === undefined) done();
    });
    // Processes that the program started may hold the pipes open after its end.
    child.on('exit', () => killGroup(child));
    child.on('close', done);
    child.stdio[3]?.on('error', () => {});
    child.stdin?.on('error', () => {}); // it ended before it read everything
    child.stdin?.end(input);
  });
}

/** Kills a process with those that it started; all of a namespace end with its first. */
function killGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // The group has ended.
  }
}

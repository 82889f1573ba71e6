/**
 * Running of programs that a model wrote, in Python. Each has a process of its own with limits on time, memory and files, in namespaces
 * in which there is no network, no other process, and nothing to write to but an empty folder in memory. That keeps mistakes away from
 * the machine; it is no jail for a program that was written to break out of it.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { UnsupportedError } from '../errors.ts';
import { type CallTable, checkCall, kCall, wholeNumber } from '../options/call.ts';

/** How a program ended: without an error, with one (or by a limit on memory or files), or not within its time. */
export type Outcome = 'passed' | 'failed' | 'timed out';

/** Options of {@link openCodeRunner}. */
export interface CodeRunnerOptions {
  /**
   * Whether programs run without namespaces where none can be made: with limits on time, memory and the size of files, but with the
   * network and the user's files. Default false.
   */
  readonly unsafe?: boolean;
  /** Seconds that a program may take, a whole number. Default 10. */
  readonly seconds?: number;
  /** Address space of a program in bytes. Default 1 GiB. */
  readonly memoryBytes?: number;
}

/** The kinds of the options. */
const kTable: CallTable<CodeRunnerOptions> = {
  unsafe: kCall.boolean,
  seconds: wholeNumber({ least: 1, most: 3600 }),
  memoryBytes: wholeNumber({ least: 2 ** 26 }),
};

/** Runs programs. */
export interface CodeRunner {
  /** Whether programs run in namespaces of their own. */
  readonly isIsolated: boolean;
  /** Runs a program, and waits for its end. @throws the signal's reason; UnsupportedError where it cannot be started */
  run(program: string, signal?: AbortSignal): Promise<Outcome>;
}

/** Largest size of a file that a program writes, and of all that it writes in memory, in bytes. */
const kFileBytes = 16 * 2 ** 20;
const kFolderBytes = 64 * 2 ** 20;
const kOpenFiles = 64;
const kProcesses = 64;

/**
 * The program between the namespaces and Python: it makes all mounts read-only, puts an empty file system in memory over the work
 * folder, sets the limits, and gives up the rights that allowed it to. Its arguments: whether there are namespaces, the folder, seconds,
 * bytes of memory.
 */
const kLauncher = `
import ctypes, os, resource, signal, sys
isolated, folder, seconds, memory = sys.argv[1] == 'yes', sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
libc = ctypes.CDLL(None, use_errno=True)
def check(result, what):
    if result != 0:
        code = ctypes.get_errno()
        sys.exit(what + ': ' + os.strerror(code))
if isolated:
    MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x4000, 0x40000, 2, 4
    check(libc.mount(None, b'/', None, MS_REC | MS_PRIVATE, None), 'mounts cannot be made private')
    attributes = (ctypes.c_uint64 * 4)(1, 0, 0, 0)
    SYS_mount_setattr, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
    check(
        libc.syscall(SYS_mount_setattr, AT_FDCWD, b'/', AT_RECURSIVE, attributes, ctypes.sizeof(attributes)),
        'mounts cannot be made read-only',
    )
    options = 'size=${kFolderBytes}'.encode()
    check(libc.mount(b'tmpfs', folder.encode(), b'tmpfs', MS_NOSUID | MS_NODEV, options), 'there is no tmpfs')
os.chdir(folder)
for name, limit in (
    ('RLIMIT_AS', memory),
    ('RLIMIT_CPU', seconds + 1),
    ('RLIMIT_FSIZE', ${kFileBytes}),
    ('RLIMIT_NOFILE', ${kOpenFiles}),
    ('RLIMIT_CORE', 0),
) + ((('RLIMIT_NPROC', ${kProcesses}),) if isolated else ()):
    resource.setrlimit(getattr(resource, name), (limit, limit))
# The end of the time also where the process that waits for it was killed.
signal.alarm(seconds + 5)
if isolated:
    PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 'rights cannot be given up')
os.execv(sys.executable, [sys.executable, '-I', '-c', sys.argv[5]])
`;

/** The line that is written before a program begins. */
const kReady = 'ready\n';

/** The program that runs another one, which it reads after a line with a secret word, and writes the word if that has no error. */
const kRun = `
import os, sys
word, program = sys.stdin.read().split('\\n', 1)
result = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
os.write(result, b'ready\\n')
try:
    exec(compile(program, 'program', 'exec'), {})
except BaseException:
    os._exit(1)
os.write(result, word.encode())
os._exit(0)
`;

/**
 * Prepares the running of programs, by running one that does nothing.
 * @throws UnsupportedError where there is no python3, or where no namespaces can be made and that is not allowed
 */
export async function openCodeRunner(options: CodeRunnerOptions = {}): Promise<CodeRunner> {
  checkCall('openCodeRunner', options, kTable);
  const { unsafe = false, seconds = 10, memoryBytes = 2 ** 30 } = options;
  const limits = { seconds, memoryBytes };
  const runner = (isIsolated: boolean): CodeRunner => ({
    isIsolated,
    run: (program, signal) => runProgram(program, { ...limits, isIsolated, signal }),
  });
  const isolated = runner(true);
  let failure: UnsupportedError;
  try {
    await isolated.run('');
    return isolated;
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
  const bare = runner(false);
  await bare.run('');
  return bare;
}

interface RunOptions {
  readonly isIsolated: boolean;
  readonly seconds: number;
  readonly memoryBytes: number;
  readonly signal: AbortSignal | undefined;
}

/** Arguments of unshare: a user, the mounts, the network, the processes and the interprocess communication of its own. */
const kNamespaces = [
  ...['--user', '--map-root-user', '--mount', '--net', '--ipc', '--pid', '--fork'],
  '--kill-child=SIGKILL',
];

async function runProgram(program: string, options: RunOptions): Promise<Outcome> {
  options.signal?.throwIfAborted();
  const folder = await mkdtemp(join(tmpdir(), 'balora-code-'));
  try {
    return await runIn(folder, program, options);
  } finally {
    await rm(folder, { recursive: true, force: true, maxRetries: 3 });
  }
}

async function runIn(folder: string, program: string, options: RunOptions): Promise<Outcome> {
  const { isIsolated, seconds, memoryBytes, signal } = options;
  const word = randomBytes(16).toString('hex');
  const python = [
    ...['python3', '-I', '-c', kLauncher, isIsolated ? 'yes' : 'no'],
    ...[folder, String(seconds), String(memoryBytes), kRun],
  ];
  const [command, ...args] = (isIsolated ? ['unshare', ...kNamespaces, ...python] : python) as [
    string,
    ...string[],
  ];
  // The environment may have keys and tokens.
  const { PATH = '' } = process.env;
  const child = spawn(command, args, {
    cwd: folder,
    env: { PATH, HOME: folder, TMPDIR: folder, LANG: 'C.UTF-8' },
    stdio: 'pipe',
    detached: true,
  });
  const { out, err, why } = await finished(child, {
    input: `${word}\n${program}`,
    limitMs: seconds * 1000,
    signal,
  });
  if (why === 'aborted') throw (signal as AbortSignal).reason;
  if (!out.startsWith(kReady)) {
    if (why === 'timed out') return why;
    const said = err.trim().split('\n').at(-1) || 'it ended at once';
    throw new UnsupportedError(
      isIsolated
        ? `no namespaces can be made for python3 (${said})`
        : `python3 cannot be started (${said})`,
    );
  }
  // A program that ends in time is judged by its word, whatever it does to its exit code.
  return why === 'timed out' ? why : out === kReady + word ? 'passed' : 'failed';
}

/** Longest beginning of the output that is looked at. */
const kOutput = 4096;

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
    const end = (reason: Finished['why']): void => {
      why = reason;
      killGroup(child);
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
    child.stdin?.on('error', () => {}); // it ended before it read everything
    child.stdin?.end(input);
  });
}

/** Kills a process with those that it started; in a namespace, all of that one end with the first. */
function killGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // The group has ended.
  }
}

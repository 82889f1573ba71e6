// Runs a target of the attack: one process after the other, each for many inputs, until the time is over or all inputs have run. A
// process that dies, hangs or takes too much memory is a finding of its current input, and the next process begins behind it.
import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { loadTarget } from './targets.mjs';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));
const kChild = fileURLToPath(new URL('child.mjs', import.meta.url));
const kPollMs = 200;
/** Processor seconds without a new input that count as a hang, and resident memory at which a process is stopped. */
const kHangSeconds = 30;
/** How much more time that may take by the clock, where the process waits or others have the processor. */
const kWaiting = 4;
const kTicksPerSecond = 100; // USER_HZ, 100 on every Linux
const kMostMiB = 3000;
const kPerProcess = 1500;
/** A process that starts, loads balora and makes its first input takes no longer than this. */
const kStartSeconds = 60;

/** A folder in memory where the system has one. */
const scratch = () => mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'balora-attack-'));

const readText = (path) => (existsSync(path) ? readFileSync(path, 'utf8') : '');

function residentMiB(pid) {
  const [, kiB] = /VmRSS:\s+(\d+) kB/.exec(readText(`/proc/${pid}/status`)) ?? [];
  return kiB === undefined ? 0 : Number(kiB) / 1024;
}

/** Processor seconds of a process, or 0 without /proc. */
function processorSeconds(pid) {
  const stat = readText(`/proc/${pid}/stat`);
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11] ?? 0) + Number(fields[12] ?? 0)) / kTicksPerSecond;
}

/** Runs one process; its findings, counts, and the number of the input at which it ended by itself or by force. */
function runChild(task, { hangSeconds, mostMiB }) {
  const { report } = task;
  rmSync(report, { recursive: true, force: true });
  mkdirSync(report, { recursive: true });
  const log = openSync(join(report, 'log'), 'w');
  const args = ['--expose-gc', ...(task.nodeArgs ?? []), kChild, JSON.stringify(task)];
  const child = spawn(process.execPath, args, {
    cwd: kRoot,
    stdio: ['ignore', log, log],
    env: { ...process.env, NODE_OPTIONS: '', OMP_WAIT_POLICY: 'passive', HF_TOKEN: '', HF_HUB_OFFLINE: '' },
  });
  const at = () => readText(join(report, 'at')).trim();
  let stopped = null;
  let [seen, since, used] = ['', performance.now(), 0];
  const watch = setInterval(() => {
    const now = at();
    if (now !== seen) [seen, since, used] = [now, performance.now(), processorSeconds(child.pid)];
    const limit = seen === '' ? Math.max(kStartSeconds, hangSeconds) : hangSeconds;
    const waited = performance.now() - since > 1000 * limit * kWaiting;
    if (waited || processorSeconds(child.pid) - used > limit) stopped ??= ['hang', `no end within ${limit} s`];
    const held = residentMiB(child.pid);
    if (held > mostMiB) stopped ??= ['memory', `stopped at ${Math.round(held)} MiB`];
    if (stopped) child.kill('SIGKILL');
  }, kPollMs);
  return new Promise((resolve) => {
    child.once('close', (code, signal) => {
      clearInterval(watch);
      closeSync(log);
      const findings = readText(join(report, 'findings.jsonl')).split('\n').filter(Boolean).map((line) => JSON.parse(line));
      const counts = JSON.parse(readText(join(report, 'counts.json')) || 'null');
      const ended = stopped ?? (code === 0 && counts ? null : ['crash', signal ? `killed by ${signal}` : `exit status ${code}`]);
      resolve({ findings, counts, at: at(), ended, log: readText(join(report, 'log')) });
    });
  });
}

/** The part of a finding that is the same for every input that shows the same fault: where it was thrown, else its message's form. */
function shape({ kind, message, stack }) {
  const frames = stack.split('\n').filter((line) => /^\s+at .*\/dist\//.test(line));
  if (frames.length > 0) return `${kind}: ${frames.slice(0, 3).join()}`;
  const form = message
    .split('\n')[0]
    .replace(/\/\S+/g, '/')
    .replace(/"([^"\\]|\\.)*"/g, '""')
    .replace(/-?\d+(\.\d+)?(e[+-]?\d+)?/g, '#');
  return `${kind}: ${form.slice(0, 120)}`;
}

/** The last lines of what a dying process printed. */
const tail = (log) => log.trimEnd().split('\n').slice(-12).join('\n').slice(-2000);

/**
 * Attacks one target.
 * @param options target: its name; seed; seconds: the time; first, count: the inputs, all from 0 on unless given; say: prints a line
 * @returns { name, missing, inputs, accepted, refused, findings: [{ index, kind, message, stack, times, saved, repeat }], seconds }
 */
export async function attackTarget({ target: name, seed, seconds, first = 0, count = Number.POSITIVE_INFINITY, say = () => {} }) {
  const target = await loadTarget(name);
  const started = performance.now();
  const result = { name, missing: target.missing?.() ?? null, inputs: 0, accepted: 0, refused: 0, findings: [], seconds: 0 };
  if (result.missing !== null) return result;
  const limits = { hangSeconds: target.hangSeconds ?? kHangSeconds, mostMiB: target.mostMiB ?? kMostMiB };
  const folder = scratch();
  const common = { target: name, seed, folder, nodeArgs: target.nodeArgs };
  const left = () => seconds - (performance.now() - started) / 1000;
  const byShape = new Map();
  const found = async (finding) => {
    const known = byShape.get(shape(finding));
    if (known) {
      ++known.times;
      return;
    }
    const saved = join(kRoot, 'build', 'attack', 'findings', `${name.replaceAll('/', '_')}-${seed}-${finding.index}`);
    const repeat = `node test/attack/main.mjs --target ${name} --seed ${seed} --first ${finding.index} --count 1`;
    const whole = { ...finding, times: 1, saved, repeat };
    byShape.set(shape(finding), whole);
    await runChild({ ...common, first: finding.index, count: 1, seconds: 60, report: join(folder, 'save'), save: saved }, limits);
    say(`${name}: ${finding.kind} at input ${finding.index}: ${finding.message.split('\n')[0]}\n  ${repeat}\n  input: ${saved}`);
  };
  for (let next = first; next < first + count && left() > 0; ) {
    const share = Math.min(target.perProcess ?? kPerProcess, first + count - next);
    const task = { ...common, first: next, count: share, seconds: left(), report: join(folder, 'report') };
    const run = await runChild(task, limits);
    for (const finding of run.findings) await found(finding);
    const last = run.at === '' ? null : Number(run.at);
    if (run.ended !== null) {
      const [kind, message] = run.ended;
      await found({ index: last ?? next, kind, message: `${message}\n${tail(run.log)}`, stack: '' });
    }
    if (last === null) break; // it cannot even begin
    const done = last - next + 1;
    result.inputs += done;
    result.accepted += run.counts?.accepted ?? 0;
    result.refused += run.counts?.refused ?? 0;
    next = last + 1;
  }
  if (result.inputs === 0 && byShape.size === 0 && seconds > 0) {
    await found({ index: first, kind: 'no input', message: `none ran within ${seconds} s`, stack: '' });
  }
  rmSync(folder, { recursive: true, force: true });
  return { ...result, findings: [...byShape.values()], seconds: (performance.now() - started) / 1000 };
}

/**
 * Attacks several targets, as many at a time as there are lanes, and divides the time by their shares.
 * @param options targets: names; minutes: in all; lanes: default one for each two processors
 */
export async function attackAll({ targets, minutes, lanes = Math.ceil(availableParallelism() / 2), ...rest }) {
  const loaded = await Promise.all(targets.map(loadTarget));
  const waiting = loaded
    .filter((target) => (target.missing?.() ?? null) === null)
    .sort((a, b) => (b.share ?? 1) - (a.share ?? 1));
  const results = new Map();
  const shares = waiting.reduce((sum, { share = 1 }) => sum + share, 0);
  const width = Math.max(1, Math.min(lanes, waiting.length));
  const lane = async () => {
    for (let target = waiting.shift(); target; target = waiting.shift()) {
      const { name, share = 1 } = target;
      // A target that takes longer, by a hang or a long input, takes nothing from the others.
      const seconds = (60 * minutes * width * share) / shares;
      results.set(name, await attackTarget({ ...rest, target: name, seconds }));
    }
  };
  await Promise.all(Array.from({ length: width }, lane));
  return Promise.all(targets.map(async (name) => results.get(name) ?? (await attackTarget({ ...rest, target: name, seconds: 0 }))));
}

// Helpers that run commands and show their progress in the terminal. They use Node built-ins only, since these files run before
// anything is installed.
import { spawn, spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { styleText } from 'node:util';

export const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
export const inRoot = (...parts) => join(root, ...parts);

/** A failure whose message is enough for the user, and is printed without a stack trace. */
export class SetupError extends Error {
  name = 'SetupError';
}

const tty = process.stdout.isTTY === true && !process.env.NO_COLOR;
const paint = (style, text) => (tty ? styleText(style, text, { validateStream: false }) : text);
export const bold = (text) => paint('bold', text);
export const green = (text) => paint('green', text);
export const red = (text) => paint('red', text);
export const yellow = (text) => paint('yellow', text);

export function say(text) {
  process.stdout.write(`${text}\n`);
}

/** Whether the command exists and answers `--version`. */
export function has(command, args = ['--version']) {
  return spawnSync(command, args, { stdio: 'ignore' }).status === 0;
}

/** Standard output of a command, trimmed; null when it fails or does not exist. */
export function capture(command, args) {
  const { status, stdout } = spawnSync(command, args, { cwd: root, encoding: 'utf8' });
  return status === 0 ? stdout.trim() : null;
}

/** The error of a command that could not be started. */
function notStarted(command, { code, message }) {
  const why = code === 'ENOENT' ? 'it is not on the PATH' : message;
  const tools = '"npm run setup -- --developer" installs the tools of the checks';
  return new SetupError(
    `could not run ${command}: ${why}. Install it and run this again; ${tools}.`,
  );
}

/** Runs a command with the terminal's own streams; the exit status (null: killed by a signal). */
export function runVisible(command, args, { env } = {}) {
  const options = { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] };
  const { status, error } = spawnSync(command, args, {
    ...options,
    env: { ...process.env, ...env },
  });
  if (error) throw notStarted(command, error);
  return status;
}

/** Runs a command beside others: its status, and what it printed. */
export async function runBeside(command, args) {
  const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk) => {
      text += chunk;
    });
  }
  const status = await new Promise((resolve, reject) => {
    child.once('error', (error) => reject(notStarted(command, error)));
    child.once('close', resolve);
  });
  return { status, text };
}

/** Runs a command quietly into build/logs/NAME.log; a failure throws with the log's last lines. */
export async function runLogged(name, command, args, { env, cwd = root } = {}) {
  const log = inRoot('build', 'logs', `${name}.log`);
  mkdirSync(dirname(log), { recursive: true });
  const out = openSync(log, 'w');
  const stdio = ['ignore', out, out];
  const child = spawn(command, args, { cwd, stdio, env: { ...process.env, ...env } });
  const status = await new Promise((resolve, reject) => {
    child.once('error', (error) => reject(notStarted(command, error)));
    child.once('close', resolve);
  }).finally(() => closeSync(out));
  if (status === 0) return;
  const tail = readFileSync(log, 'utf8').trimEnd().split('\n').slice(-25).join('\n');
  throw new SetupError(
    `${[command, ...args].join(' ')} failed (${status ?? 'killed'}).\n${tail}\nThe complete log is ${log}; remove the cause and run this again.`,
  );
}

/** Runs one step of the work and prints it as `[2/4] Node packages ... done in 5.1 s`, with any lines of the work in between. */
export async function step(position, title, work) {
  const started = performance.now();
  say(`${bold(`[${position}]`)} ${title}`);
  const note = await work();
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  say(`${bold(`[${position}]`)} ${title}: ${green(note ?? 'done')} (${seconds} s)`);
}

/** Refusals of the system by the code of Node's error, each with a remedy. */
const kRefusals = {
  ENOENT: ['there is no such file or folder', 'Check the path'],
  ENOSPC: ['the disk is full', 'Free space'],
  EDQUOT: ["the user's disk quota is used up", 'Free space'],
  EROFS: ['the file system is mounted read-only', 'Use a clone on another one'],
  EACCES: ['this user may not write there', 'Change the owner or the permissions'],
  EPERM: ['this user may not do that', 'Change the owner or the permissions'],
};

/** Text of an error for a person, without a stack where the scripts are not at fault. */
export function textOf(error) {
  if (error instanceof SetupError) return error.message;
  const refusal = error?.syscall ? kRefusals[error.code] : undefined;
  if (refusal) {
    const [problem, remedy] = refusal;
    const place = error.path ?? `could not write below ${root}`;
    return `${place}: ${problem} (${error.code}). ${remedy} and run this again.`;
  }
  return error?.stack ?? String(error);
}

/** Runs the main function of a script; a failure prints its text and makes the exit status 1. */
export async function main(body) {
  try {
    process.exitCode = (await body(process.argv.slice(2))) ?? 0;
  } catch (error) {
    process.stderr.write(`\n${red('error')} ${textOf(error)}\n`);
    process.exitCode = 1;
  }
}

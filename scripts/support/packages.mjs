// System packages: which manager this machine has, whether it may be used without a question, and the exact command that a
// person would give.
import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { has, inRoot, runLogged, SetupError } from './shell.mjs';

/** How each manager installs packages. Only apt is ever called; the others' commands are printed. */
const kInstall = {
  apt: 'apt-get update && SUDOapt-get install -y --no-install-recommends',
  dnf: 'dnf install -y',
  pacman: 'pacman -S --needed',
  apk: 'apk add',
};
export const kManagers = Object.keys(kInstall);
const kPrograms = { apt: 'apt-get', dnf: 'dnf', pacman: 'pacman', apk: 'apk' };

/** The manager of this machine, or null. */
export function packageManager() {
  return kManagers.find((manager) => has(kPrograms[manager])) ?? null;
}

/** The distribution's name for itself, or 'this system'. */
export function systemName(text = osRelease()) {
  return text.match(/^PRETTY_NAME="?([^"\n]*)"?$/m)?.[1] || 'this system';
}

function osRelease() {
  try {
    return readFileSync('/etc/os-release', 'utf8');
  } catch {
    return '';
  }
}

/** True on Debian 13, where every check can run. */
export const isDebian13 = (text = osRelease()) => /^VERSION_CODENAME="?trixie"?$/m.test(text);

/**
 * The command that installs packages, as a person gives it.
 * @param manager one of kManagers
 * @param packages their names there
 * @param sudo what becomes root; '' for root itself
 */
export function installCommand(manager, packages, sudo = 'sudo ') {
  const command = kInstall[manager].replace('SUDO', sudo);
  return `${sudo}${command} ${[...new Set(packages)].join(' ')}`;
}

/**
 * The commands to print where packages are missing: the machine's own manager's, or all of them where it has none of these.
 * @param names package names by manager
 */
export function commandsFor(
  names,
  { manager = packageManager(), root = process.getuid?.() === 0, sudo = has('sudo') } = {},
) {
  const command = (each) => installCommand(each, names[each], root || !sudo ? '' : 'sudo ');
  const lines = manager
    ? [`  ${command(manager)}`]
    : kManagers.map((each) => `  ${each.padEnd(6)}  ${command(each)}`);
  return [...(root || sudo ? [] : ['as root:']), ...lines].join('\n');
}

/** How apt can be called without a question: [] as root, ['sudo', '-n'] with free sudo, null otherwise. */
export function aptPrefix() {
  if (!has('apt-get')) return null;
  if (process.getuid?.() === 0) return [];
  return has('sudo', ['-n', 'true']) ? ['sudo', '-n'] : null;
}

/** The version that apt would install of each package, by name; what it does not know is left out. */
export function aptCandidates(names) {
  const { stdout } = spawnSync('apt-cache', ['policy', ...names], {
    ...{ encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } },
  });
  return parsePolicy(stdout ?? '');
}

export function parsePolicy(text) {
  const found = [...text.matchAll(/^(\S+):\n(?: {2}.*\n)*? {2}Candidate: (\S+)$/gm)];
  return Object.fromEntries(
    found
      .filter(([, , version]) => version !== '(none)')
      .map(([, name, version]) => [name, version]),
  );
}

/** The environment's proxies as NAME=VALUE: sudo takes them away, and apt reads the lower-case names alone. */
export function proxies(env = process.env) {
  return ['http_proxy', 'https_proxy', 'no_proxy'].flatMap((name) => {
    const value = env[name] ?? env[name.toUpperCase()];
    return value ? [`${name}=${value}`] : [];
  });
}

async function apt(prefix, name, args) {
  const set = ['DEBIAN_FRONTEND=noninteractive', 'LC_ALL=C', ...proxies()];
  const [command, ...rest] = [...prefix, 'env', ...set, 'apt-get', ...args];
  await runLogged(name, command, rest);
}

/** What apt's log says of a network that did not answer, or null. apt-get update ends well without one. */
export function networkTrouble(log) {
  return (
    log.match(
      /^.*(Temporary failure resolving|Could not resolve|Could not connect|Unable to connect|Connection timed out|Connection refused|No route to host|Network is unreachable|Proxy Authentication Required).*$/m,
    )?.[0] ?? null
  );
}

export const kNoNetwork =
  'Is there a network? Behind a proxy, set http_proxy and https_proxy in the environment and run this again.';

let updated = false;

/** `apt-get update`, once a run. */
export async function aptUpdate(prefix) {
  if (updated) return;
  rmSync(logOf('apt-install'), { force: true }); // of a run before
  await apt(prefix, 'apt-update', ['update', '-q', '-o', 'Acquire::Retries=2']);
  updated = true;
}

/** Installs packages through apt; throws a SetupError that says which could not be had, and why. */
export async function aptInstall(prefix, packages) {
  try {
    const flags = ['-y', '-q', '--no-install-recommends', '-o', 'Acquire::Retries=2'];
    await apt(prefix, 'apt-install', ['install', ...flags, ...packages]);
  } catch (error) {
    const message = noNetwork(packages.join(' '));
    throw message === null ? error : new SetupError(message);
  }
}

/** What to say where apt's logs tell of a network that did not answer; null where they do not. */
export function noNetwork(wanted) {
  const trouble = networkTrouble(`${readLog('apt-update')}\n${readLog('apt-install')}`);
  return trouble && `apt-get could not fetch ${wanted}:\n  ${trouble.trim()}\n${kNoNetwork}`;
}

const logOf = (name) => inRoot('build', 'logs', `${name}.log`);

export function readLog(name) {
  try {
    return readFileSync(logOf(name), 'utf8');
  } catch {
    return '';
  }
}

// System packages: the package manager of this machine, whether it can be used without a password, and the exact command for a
// person to type.
import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { has, inRoot, runLogged, SetupError } from './shell.mjs';

/** The command of each manager that installs packages. Only apt is ever called; the others' commands are printed. */
const kInstall = {
  apt: 'apt-get update && SUDOapt-get install -y --no-install-recommends',
  dnf: 'dnf install -y',
  pacman: 'pacman -S --needed',
  apk: 'apk add',
};
export const kManagers = Object.keys(kInstall);
const kPrograms = { apt: 'apt-get', dnf: 'dnf', pacman: 'pacman', apk: 'apk' };

/** The package manager of this machine, or null. */
export function packageManager() {
  return kManagers.find((manager) => has(kPrograms[manager])) ?? null;
}

/** The name that the distribution gives itself, or 'this system'. */
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

/**
 * The command that installs packages, as a person types it.
 * @param manager one of kManagers
 * @param packages their names there
 * @param sudo the prefix that becomes root; '' for root itself
 */
export function installCommand(manager, packages, sudo = 'sudo ') {
  const command = kInstall[manager].replace('SUDO', sudo);
  return `${sudo}${command} ${[...new Set(packages)].join(' ')}`;
}

/**
 * The commands to print where packages are missing: that of the machine's package manager, or one for each where it has another.
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

/** The prefix to call apt without a password: [] as root, ['sudo', '-n'] where sudo asks for none, null otherwise. */
export function aptPrefix() {
  if (!has('apt-get')) return null;
  if (process.getuid?.() === 0) return [];
  return has('sudo', ['-n', 'true']) ? ['sudo', '-n'] : null;
}

/** The version that apt would install of each package, by name; packages that it does not know are left out. */
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

/** The environment's proxies as NAME=VALUE, because sudo removes them, and apt reads only the lower-case names. */
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

/** The line in apt's log about a network that did not answer, or null. apt-get update succeeds even without a network. */
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

/** Runs `apt-get update`, once per run of the script. */
export async function aptUpdate(prefix) {
  if (updated) return;
  rmSync(logOf('apt-install'), { force: true }); // left by an earlier run
  await apt(prefix, 'apt-update', ['update', '-q', '-o', 'Acquire::Retries=2']);
  updated = true;
}

/** Installs packages through apt; throws a SetupError that names those that could not be installed, and why. */
export async function aptInstall(prefix, packages) {
  try {
    const flags = ['-y', '-q', '--no-install-recommends', '-o', 'Acquire::Retries=2'];
    await apt(prefix, 'apt-install', ['install', ...flags, ...packages]);
  } catch (error) {
    const message = noNetwork(packages.join(' '));
    throw message === null ? error : new SetupError(message);
  }
}

/** A message for the user where apt's logs show that the network did not answer; null where they do not. */
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

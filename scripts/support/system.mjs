// The requirements on the machine: platform, Node, and system packages. On Debian and Ubuntu missing packages are installed through
// apt when that needs no password; elsewhere the exact command is printed.
import { createInterface } from 'node:readline/promises';
import { unmet } from './needs.mjs';
import nodeVersion from './node_version.cjs';
import {
  aptCandidates,
  aptInstall,
  aptPrefix,
  aptUpdate,
  commandsFor,
  kManagers,
  noNetwork,
  packageManager,
  systemName,
} from './packages.mjs';
import { SetupError, say, yellow } from './shell.mjs';

/** Checks the platform and Node. Throws SetupError for one that is not supported; prints a note for one that is untested. */
export function checkPlatform({
  platform = process.platform,
  arch = process.arch,
  node = process.versions.node,
} = {}) {
  const message = nodeVersion.tooOld(node);
  if (message) throw new SetupError(message);
  const name = `${platform}-${arch}`;
  if (name === 'linux-x64') return;
  if (name === 'linux-arm64' || platform === 'darwin') {
    say(yellow(`${name} is untested: the build is attempted and may fail.`));
    return;
  }
  throw new SetupError(
    `UnsupportedPlatform: balora builds on linux-x64 (linux-arm64 and macOS: untested), this is ${name}. Use a machine with linux-x64.`,
  );
}

/** The packages of a manager that satisfy a need; null where apt has no suitable one. */
function packagesOf({ packages }, manager, candidates) {
  const names = packages[manager];
  if (typeof names !== 'function') return names;
  return manager === 'apt' ? names(candidates) : null;
}

/** The versions that apt would install of all packages that could satisfy the needs, by name. */
const candidatesOf = (needs) =>
  aptCandidates(needs.flatMap(({ packages, candidates }) => candidates ?? packages.apt));

const listed = (needs) => needs.map(({ what, problem }) => `  ${what}: ${problem}`).join('\n');

/** The message where needs are not met and cannot be installed without a password. */
export function missingMessage(needs, { manager = packageManager(), candidates = null } = {}) {
  const known = candidates ?? (manager === 'apt' ? candidatesOf(needs) : {});
  // Without package lists, as before the first `apt-get update`, the usual names are used.
  const usual = { 'g++': '99', cmake: '99.0', 'libdnnl-dev': '99.0' };
  const listless = Object.keys(known).length === 0;
  const absent = manager === 'apt' && !listless ? absentMessage(needs, known) : null;
  if (absent !== null) return absent;
  const fallback = listless ? usual : known;
  const names = Object.fromEntries(
    kManagers.map((each) => [
      each,
      needs.flatMap((need) => packagesOf(need, each, fallback) ?? []),
    ]),
  );
  const command = commandsFor(names, { manager });
  return `Missing on ${systemName()}:\n${listed(needs)}\nInstall them and run this again:\n${command}${oneDnnHint(needs)}`;
}

function oneDnnHint(needs) {
  return needs.some(({ id }) => id === 'onednn')
    ? '\nWhere the system has no such oneDNN: npm run setup -- --build-onednn'
    : '';
}

/** The message where apt has no package for a need, or null. */
function absentMessage(needs, candidates) {
  const without = needs.filter((need) => {
    const names = packagesOf(need, 'apt', candidates);
    return names === null || (!need.candidates && names.some((name) => !(name in candidates)));
  });
  if (without.length === 0) return null;
  return `${systemName()} has no package that is new enough for:\n${listed(without)}\nDebian 12 and Ubuntu 22.04 have them: use one of these or newer, or install newer versions by hand, and run this again.${oneDnnHint(without)}`;
}

/** Waits until a person at a terminal has run the command; throws where there is no terminal, or the needs are still not met. */
async function waitFor(ids, message) {
  if (!process.stdin.isTTY || !process.stdout.isTTY) throw new SetupError(message);
  say(`\n${message}`);
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  await terminal.question('\nOr do that in another terminal and press Enter here to go on. ');
  terminal.close();
  const still = unmet(ids);
  if (still.length > 0) {
    throw new SetupError(`Still missing:\n${listed(still)}\nInstall them and run this again.`);
  }
  return 'installed by hand';
}

/**
 * Installs the needs of the native build, or throws with the command that would.
 * @returns a note for the progress line
 */
export async function ensureNeeds(ids) {
  const missing = unmet(ids);
  if (missing.length === 0) return 'all present';
  const prefix = aptPrefix();
  if (prefix === null) return waitFor(ids, missingMessage(missing));
  await aptUpdate(prefix);
  const candidates = candidatesOf(missing);
  const absent = absentMessage(missing, candidates);
  if (absent !== null) throw new SetupError(noNetwork('its package lists') ?? absent);
  const packages = missing.flatMap((need) => packagesOf(need, 'apt', candidates));
  say(`      installing ${packages.join(' ')}`);
  await aptInstall(prefix, packages);
  const still = unmet(ids);
  if (still.length > 0) {
    throw new SetupError(
      `apt-get succeeded, but these are still not usable:\n${listed(still)}\nInstall them by hand and run this again.`,
    );
  }
  return `installed ${packages.length}`;
}

/**
 * Installs the tools of the checks as far as the machine allows.
 * @returns the tools that are left out: [{ id, reason }], with how to get each
 */
export async function ensureTools(ids) {
  const missing = unmet(ids);
  if (missing.length === 0) return [];
  const prefix = aptPrefix();
  if (prefix !== null) await installTools(prefix, missing);
  const manager = packageManager();
  return unmet(ids).map((need) => {
    const names = Object.fromEntries(
      kManagers.map((each) => [each, packagesOf(need, each, {}) ?? []]),
    );
    const absent = prefix !== null && !(need.packages.apt[0] in aptCandidates(need.packages.apt));
    const how = absent
      ? `${systemName()} has no package ${need.packages.apt[0]}; install it by hand`
      : commandsFor(names, { manager }).trim();
    return { id: need.id, reason: `no ${need.what}: ${how}` };
  });
}

/** Installs those of the tools that apt has; a failure leaves them out. */
async function installTools(prefix, missing) {
  try {
    await aptUpdate(prefix);
    const candidates = candidatesOf(missing);
    const packages = missing.flatMap(({ packages: { apt } }) =>
      apt.every((name) => name in candidates) ? apt : [],
    );
    if (packages.length === 0) return;
    say(`      installing ${packages.join(' ')}`);
    await aptInstall(prefix, packages);
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    say(yellow(`      ${error.message}`));
  }
}

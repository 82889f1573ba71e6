// Runs the README's two commands in empty systems: debootstrap makes roots of Debian 11, 12, 13 and sid with nothing installed but
// git, ca-certificates and Node, and a clone of the committed state is set up in each. For Linux, as root:
//
//   node scripts/roots.mjs [--suites bookworm,trixie] [--folder DIR] [--node VERSION] [--keep] [-- COMMAND]
//
// This is no part of npm test, because it takes an hour, several gigabytes, Debian's mirror and npm's registry. It runs whole before each
// version (CONTRIBUTING.md); docs/platforms.md says when it last did.
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
import { join } from 'node:path';
import { addNetwork, addNode, insideRoot, makeBase, rootProblem } from './support/debian_root.mjs';
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
  if (status === 0) return;
  const tail = text.trimEnd().split('\n').slice(-15).join('\n');
  throw new SetupError(`${[command, ...args].join(' ')} failed (${status}):\n${tail}`);
}

/** Runs a command of a shell inside the root. */
function inside(log, folder, command) {
  const { program, args, env } = insideRoot(folder, ['/bin/sh', '-c', command]);
  return record(log, program, args, { env });
}

/** Gives the root npm's settings for this machine's registry. */
function addRegistry(folder) {
  const own = join(homedir(), '.npmrc');
  const registry = `registry=${capture('npm', ['config', 'get', 'registry'])}\n`;
  const settings = existsSync(own) ? readFileSync(own, 'utf8') : '';
  writeFileSync(join(folder, 'root', '.npmrc'), registry + settings, { mode: 0o600 });
}

async function makeRoot(log, suite, { folder, node }) {
  const base = join(folder, `${suite}-base`);
  const made = join(folder, suite);
  const run = (...args) => must(log, ...args);
  if (!existsSync(join(base, '.made'))) {
    rmSync(base, { recursive: true, force: true });
    await makeBase(run, suite, base);
    writeFileSync(join(base, '.made'), '');
  }
  rmSync(made, { recursive: true, force: true });
  await run('cp', ['-a', '--reflink=auto', base, made]);
  await addNetwork(run, made);
  await addNode(run, made, node);
  addRegistry(made);
  await run('git', ['clone', '-q', '--no-hardlinks', root, join(made, 'root', 'balora')]);
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
  const problem = rootProblem();
  if (problem) throw new SetupError(problem);
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

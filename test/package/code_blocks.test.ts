// Code on the pages of the documentation: programs and commands of balora are run in a folder with the files that they name, with
// training cut to two steps. Other commands are checked for the names in them. test/package/how_to.test.ts tests the files that
// how-tos add to the library.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { kFakePlugin, kNoFake } from '../support/fake_device.ts';
import { kHangLimitMs } from '../support/limits.ts';
import { writePageFolder, writePageModels } from '../support/page_folder.ts';
import {
  addedFile,
  type Block,
  blocksOf,
  codeSpansOf,
  excerptOf,
  isProgram,
  kPages,
  pageText,
  programsOf,
} from '../support/pages.ts';
import {
  baloraCommand,
  baloraProblem,
  commandsOf,
  fileProblem,
  linesOf,
  problemOf,
} from '../support/shell_commands.ts';

/** Commands and blocks, by their beginning, that are neither run nor checked, and the reason. */
const kLeftOut: readonly (readonly [beginning: string, reason: string])[] = [
  ['sudo apt-get install', 'installs packages of the system; npm run setup does so in CI'],
  [
    'tar xJf cuda-pack.tar.xz',
    'unpacks on a machine with a GPU; test/scripts/run_cuda.test.ts runs the script',
  ],
  ['sh balora-cuda/run.sh', 'the same'],
  ['tail', 'shows what a run left'],
  ['for ', 'a loop around a command that is checked'],
  ['s (B A - B0 A0)', 'a formula'],
  ['constexpr Core<Bf16Tile>', 'a list with an entry for a processor that there are none for'],
  ['/** Whether the first step', 'a part of an option that the library does not have'],
  ['const { loggingSteps, logg', 'the same'],
  ["it('logs the first step", 'the same'],
  [
    'warning: train.tsv: corrupted on purpose',
    'a message about SST-2, which is not in the package',
  ],
];

const kBlocks = kPages.flatMap(blocksOf);
const used = new Set<string>();

function leftOut(text: string): boolean {
  const found = kLeftOut.find(([beginning]) => text.startsWith(beginning));
  if (found) used.add(found[0]);
  return found !== undefined;
}

const where = ({ page, line }: Block): string => `${page}:${line}`;
const isShell = ({ language, text }: Block): boolean =>
  ['sh', 'bash'].includes(language) ||
  (language === '' && /^(npm|npx|node|balora|tar) /.test(text));
const isConfig = ({ language, text }: Block): boolean =>
  language === 'yaml' || (language === '' && /^(#.*\n)?([\w-]+: .*\n)+$/.test(text));
/** Whether a line shows how a command is used, and cannot be run. */
const isSynopsis = (line: string): boolean =>
  /\[[^\]]*\]|^balora \w+ +(?:--model M |the )/.test(line);

/** Text or source on one line, with concatenated strings joined. */
const squeezed = (text: string): string =>
  text
    .replaceAll(/' \+\s+'/g, '')
    .replaceAll(/\s+|\\n/g, ' ')
    .replaceAll(/ +/g, ' ')
    .trim();

/** Reduces the steps of a block. */
const cutDown = (text: string): string => text.replaceAll(/(maxSteps: |--max-steps )\d+/g, '$12');

let folder = '';
let models = '';
const made = new Set<string>();
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-blocks-'));
  models = join(folder, 'models');
  await writePageModels(models);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The folder for the programs or for the commands of a page; they are separate, since both may write the same files. */
async function folderOf(page: string, kind: 'programs' | 'commands'): Promise<string> {
  const path = join(folder, kind, page.replaceAll('/', '_'));
  if (!made.has(path)) await writePageFolder(path, models);
  made.add(path);
  return path;
}

function environment(cwd: string): NodeJS.ProcessEnv {
  const { PATH, HOME, OMP_NUM_THREADS, OMP_WAIT_POLICY } = process.env;
  return {
    ...(OMP_NUM_THREADS && { OMP_NUM_THREADS }),
    ...(OMP_WAIT_POLICY && { OMP_WAIT_POLICY }),
    ...{ PATH: `${join(cwd, 'node_modules', '.bin')}:${PATH}`, HOME },
    ...{ HF_HUB_CACHE: join(models, 'hub'), HF_HUB_OFFLINE: '1' },
    ...(kNoFake === null ? { BALORA_CUDA_PLUGIN: kFakePlugin } : {}),
  };
}

/** Runs a command. @throws Error with its output where it fails */
function run(command: string, args: string[], cwd: string): void {
  const options = {
    cwd,
    env: environment(cwd),
    encoding: 'utf8',
    timeout: 0.9 * kHangLimitMs,
  } as const;
  const { status, signal, stdout, stderr } = spawnSync(command, args, options);
  if (status === 0) return;
  throw new Error(`${[command, ...args].join(' ')}: ${status ?? signal}\n${stdout}${stderr}`);
}

/** Whether a program or a command is for the server of its page, which the commands of the page start. */
const isForServer = (text: string): boolean => text.includes(kServed);
const kServed = 'http://127.0.0.1:8080';

/** A server of a page, on a free port. */
interface PageServer {
  readonly url: string;
  /** @throws Error unless it ends as a server should */
  readonly stop: () => Promise<void>;
}

/** Starts `balora serve` as a page shows it, and waits until it is ready. */
async function startServer(command: string, cwd: string): Promise<PageServer> {
  const shown = command.replace(/^npx /, '').replace(/--port \d+/, '--port 0');
  const child: ChildProcess = spawn('sh', ['-c', `exec ${shown}`], {
    ...{ cwd, env: environment(cwd), stdio: ['ignore', 'ignore', 'pipe'] },
  });
  let log = '';
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  const url = await new Promise<string>((resolve, reject) => {
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      log += text;
      const found = /ready at (\S+)\/v1/.exec(log)?.[1];
      if (found !== undefined) resolve(found);
    });
    void ended.then(() => reject(new Error(`${command}: it ended\n${log}`)));
  });
  const stop = async (): Promise<void> => {
    child.kill('SIGTERM');
    const code = await ended;
    if (code !== 0) throw new Error(`${command}: it ended with ${code}\n${log}`);
  };
  return { url, stop };
}

describe('programs', () => {
  const pages = kPages.filter((page) => kBlocks.some((b) => b.page === page && isProgram(b)));

  it.for(pages)('of %s run', async (page, { skip }) => {
    const programs = programsOf(page).filter(({ text }) => !isForServer(text));
    if (kNoFake !== null && programs.some(({ text }) => text.includes("'cuda'"))) skip(kNoFake);
    const cwd = await folderOf(page, 'programs');
    for (const { line, text } of programs) {
      await writeFile(join(cwd, `line_${line}.mjs`), cutDown(text));
    }
    const imports = programs.map(({ line }) => `await import('./line_${line}.mjs');\n`);
    await writeFile(join(cwd, 'page.mjs'), imports.join(''));
    run(process.execPath, ['page.mjs'], cwd);
  });
});

describe('commands of balora', () => {
  const pages = kPages.filter((page) => kBlocks.some((b) => b.page === page && isShell(b)));

  it.each(pages)('of %s run', async (page) => {
    const blocks = kBlocks.filter((b) => b.page === page);
    for (const block of blocks.filter(isConfig)) {
      const name = /^# (\S+)\n/.exec(block.text)?.[1];
      expect(
        name,
        `${where(block)}: the first line of a configuration names its file`,
      ).toBeDefined();
      expect(parse(block.text), where(block)).toBeTypeOf('object');
      const cwd = await folderOf(page, 'commands');
      await writeFile(
        join(cwd, name as string),
        block.text.replace(/max-steps: \d+/, 'max-steps: 2'),
      );
    }
    let server: PageServer | null = null;
    try {
      for (const block of blocks.filter(isShell)) {
        for (const line of linesOf(block.text)) {
          const words = line.split(/\s+/);
          const command = baloraCommand(words);
          if (command === null && !isForServer(line)) continue;
          if (isForServer(line)) {
            await asksServer(server, block, line);
          } else if (command?.[0] === 'serve' && !isSynopsis(line)) {
            server = await startServer(line, await folderOf(page, 'commands'));
          } else if (isSynopsis(line)) {
            expect(baloraProblem(command as string[]), where(block)).toBeNull();
          } else await runsAsShown(block, line);
        }
      }
      for (const { line, text } of programsOf(page).filter((one) => isForServer(one.text))) {
        const cwd = await folderOf(page, 'commands');
        const url = (server as PageServer | null)?.url ?? expect.unreachable(`${page}:${line}`);
        await writeFile(join(cwd, `line_${line}.mjs`), text.replaceAll(kServed, url));
        run(process.execPath, [`line_${line}.mjs`], cwd);
      }
    } finally {
      await server?.stop();
    }
  });

  /** Sends what a page shows to its server; an answer that is an error fails. */
  async function asksServer(server: PageServer | null, block: Block, line: string): Promise<void> {
    const url = server?.url ?? expect.unreachable(`${where(block)}: no server was started`);
    const asked = line.replaceAll(kServed, url).replace(/^curl /, 'curl -sS --fail-with-body ');
    run('sh', ['-c', asked], await folderOf(block.page, 'commands'));
  }

  async function runsAsShown(block: Block, line: string): Promise<void> {
    const cwd = await folderOf(block.page, 'commands');
    const rest = '--model path/to/model --data train.jsonl --output runs/rest --max-steps 2';
    const shown = line.replace(/^npx /, '').replace(' ... ', ` ${rest} `);
    run('sh', ['-c', cutDown(shown)], cwd);
  }
});

it('commands name existing scripts, files, options and targets', () => {
  const problems: string[] = [];
  for (const block of kBlocks.filter(isShell)) {
    for (const line of linesOf(block.text)) {
      if (isSynopsis(line)) continue;
      if (isForServer(line)) continue; // sent to the server of the page, above
      for (const words of commandsOf(line)) {
        const problem = problemOf(words);
        if (problem === undefined && leftOut(words.join(' '))) continue;
        if (problem !== null)
          problems.push(`${where(block)}: ${problem ?? `who checks "${words.join(' ')}"?`}`);
      }
    }
  }
  expect(problems).toEqual([]);
});

it('every block is of a kind that is run or checked', () => {
  const others = kBlocks.filter(
    (b) => !isShell(b) && !isConfig(b) && !isProgram(b) && !addedFile(b),
  );
  const unknown = others.filter((block) => {
    const path = excerptOf(block);
    if (path === undefined) return !leftOut(block.text);
    return !squeezed(pageText(path)).includes(squeezed(block.text));
  });
  expect(unknown.map((block) => `${where(block)}: ${block.text.split('\n')[0]}`)).toEqual([]);
});

it('spans of code name existing commands and files', () => {
  const kFile = /^(?:bench|cuda|docs|examples|lib|native|scripts|studies|test)\/[\w./-]+\.\w+$/;
  const added = kBlocks.map(addedFile);
  const problems = kPages.flatMap((page) =>
    codeSpansOf(page).flatMap((span) => {
      const text = span.replaceAll(/\s+/g, ' ');
      const command = baloraCommand(text.split(' '));
      const names = kFile.test(text) && !/NAME|my_op/.test(text) && !added.includes(text);
      const problem =
        command && /^(train|evaluate|generate|chat|serve|inspect|merge)$/.test(command[0] ?? '')
          ? baloraProblem(command)
          : names
            ? fileProblem(text)
            : /^(npm run|npm test|npx vitest) /.test(text)
              ? problemOf(text.split(' '))
              : null;
      return problem ? [`${page}: \`${text}\`: ${problem}`] : [];
    }),
  );
  expect(problems).toEqual([]);
});

it('the list of exceptions has no unused entry', () => {
  for (const [beginning, reason] of kLeftOut) console.log(`not run: ${beginning}: ${reason}`);
  expect(kLeftOut.map(([beginning]) => beginning).filter((text) => !used.has(text))).toEqual([]);
});

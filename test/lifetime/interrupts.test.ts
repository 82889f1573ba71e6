// Signals to `balora train` as a process of its own in every phase of a run: it ends with the signal's exit code, prints how to
// resume, and the resumed run ends in the same bytes as one that was not stopped.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { StepRecord } from '../../lib/train/types.ts';
import { timeless } from '../support/run_numbers.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

const kMain = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-interrupts-'));
  await writeTinyCheckpoint(join(folder, 'model'));
  const rows = (count: number) =>
    Array.from(
      { length: count },
      (_, i) => `{"prompt": "a${i}", "response": "${'bc'.repeat(1 + (i % 3))}"}\n`,
    );
  for (const [name, count] of [
    ['data', 40],
    ['held', 600],
    ['many', 60_000],
  ] as const) {
    writeFileSync(join(folder, `${name}.jsonl`), rows(count).join(''));
  }
});
afterAll(() => rmSync(folder, { recursive: true }));

const train = (output: string, ...more: string[]) => [
  ...['train', '--model', join(folder, 'model'), '--data', join(folder, 'data.jsonl')],
  ...['--output', join(folder, output), '--prompt-template', 'none', '--r', '2'],
  ...['--eval-data', join(folder, 'held.jsonl'), '--eval-steps', '4', '--max-steps', '8'],
  ...['--per-device-train-batch-size', '4', '--per-device-eval-batch-size', '1', ...more],
];

interface Ending {
  code: number | null;
  signal: NodeJS.Signals | null;
  err: string;
}

/** Runs balora, and sends the signal once when stderr matches. */
async function balora(
  args: string[],
  { signal, when, twice = false }: { signal?: NodeJS.Signals; when?: RegExp; twice?: boolean } = {},
): Promise<Ending> {
  const child = spawn(process.execPath, [kMain, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
  let err = '';
  let sent = false;
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    err += text;
    if (sent || signal === undefined || !when?.test(err)) return;
    sent = true;
    child.kill(signal);
    if (twice) child.kill(signal);
  });
  const [code, by] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  return { code, signal: by, err };
}

const metrics = (output: string) =>
  readFileSync(join(folder, output, 'run', 'metrics.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => timeless(JSON.parse(line) as StepRecord));
const adapter = (output: string) =>
  readFileSync(join(folder, output, 'adapter_model.safetensors'), 'base64');

it('stops while data is read, without having written anything', async () => {
  const args = train('early').map((arg) => arg.replace('data.jsonl', 'many.jsonl'));
  const { code, err } = await balora(args, { signal: 'SIGTERM', when: /rows read/ });
  expect(err).toMatch(/^stopping before the first step \(interrupt again to quit at once\)$/m);
  expect(err).toMatch(
    /^stopped before the first step, nothing was written; run it again to begin anew$/m,
  );
  expect(code).toBe(143);
  expect(existsSync(join(folder, 'early'))).toBe(false);
});

/**
 * Moments of the signal, with the exit code and the steps that may be the last complete ones: on a busy machine the test may read
 * the line some steps late.
 */
const kMoments: readonly {
  moment: string;
  signal: NodeJS.Signals;
  code: number;
  when: RegExp;
  step: RegExp;
}[] = [
  { moment: 'step', signal: 'SIGINT', code: 130, when: /^step 2\/8/m, step: /[2-7]/ },
  {
    ...{ moment: 'evaluation', signal: 'SIGHUP', code: 129 },
    ...{ when: /^checkpoint .*step-4$/m, step: /[4-7]/ },
  },
  // Each step is saved, so that the signal comes during a save or close to it.
  { moment: 'save', signal: 'SIGTERM', code: 143, when: /^step 5\/8/m, step: /[5-7]/ },
  {
    ...{ moment: 'last evaluation', signal: 'SIGTERM', code: 143 },
    ...{ when: /^checkpoint .*step-8$/m, step: /8/ },
  },
];

let straight: Promise<Ending> | undefined;

it.each(kMoments)(
  'stops during $moment, and resumes bit for bit',
  async ({ moment, signal, code, when, step }) => {
    straight ??= balora(train('straight'));
    expect((await straight).code).toBe(0);
    const output = `stopped-${moment.replace(' ', '-')}`;
    const args = train(output, '--save-minutes', '1e-6');
    // The terminal sends SIGINT to balora and to npx, which passes it on.
    const { code: found, err } = await balora(args, { signal, when, twice: signal === 'SIGINT' });
    expect(err).toMatch(
      /^stopping after this micro-batch, from where --resume continues \(interrupt again/m,
    );
    const said =
      /^aborted after (\d) steps and \S+; run the same command with --resume to continue from (.*)$/m.exec(
        err,
      );
    expect(said?.[1]).toMatch(step);
    expect(said?.[2]).toBe(join(folder, output, 'run', 'checkpoints', `step-${said?.[1]}`));
    expect(existsSync(said?.[2] as string)).toBe(true);
    expect(found).toBe(code);
    expect(existsSync(join(folder, output, 'adapter_model.safetensors'))).toBe(false);
    const last = await balora(train(output, '--resume'));
    expect(last.code).toBe(0);
    expect(last.err).toMatch(/^evaluation at step 8: /m);
    expect(metrics(output)).toEqual(metrics('straight'));
    expect(adapter(output)).toBe(adapter('straight'));
  },
);

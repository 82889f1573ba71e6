/** The PyTorch side of a row: the scripts in bench/torch/, run by a Python that has torch. */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { NativeError, UnsupportedError } from '../../lib/errors.ts';
import { median, spread, sum } from './statistics.ts';
import type { BenchDType, StepRow, TorchPairs, Workload } from './types.ts';

const scriptAt = (name: string): string =>
  fileURLToPath(new URL(`../../bench/torch/${name}`, import.meta.url));
const kRecipe = scriptAt('recipe.py');
const kEncoderStep = scriptAt('minilm_step.py');

const kOutput = z.object({
  version: z.string(),
  threads: z.number(),
  peakBytes: z.number(),
  seconds: z.array(z.number()).min(1),
  tokens: z.array(z.number()).optional(),
  capturedEnergy: z.number().optional(),
});

export type TorchRun = z.infer<typeof kOutput>;

/**
 * Runs the recipe, or a workload's own script, on a folder that writeTorchInputs made.
 * @throws UnsupportedError, NativeError with what Python said
 */
export async function runRecipe(
  python: string,
  folder: string,
  options: Readonly<Record<string, string | number | boolean>>,
  data?: Workload['data'],
): Promise<TorchRun> {
  const script = data === 'sst2' ? kEncoderStep : kRecipe;
  if (!existsSync(script)) throw new UnsupportedError(`--torch needs ${script}, which is missing`);
  const flags = Object.entries(options)
    .filter(([, value]) => value !== false)
    .flatMap(([key, value]) => [`--${key}`, ...(value === true ? [] : [String(value)])]);
  const { code, stdout, stderr } = await capture(python, [script, folder, ...flags]);
  if (code !== 0) throw new NativeError(`${python} ${script} failed:\n${stderr.slice(-2000)}`);
  return kOutput.parse(JSON.parse(stdout.trim().split('\n').at(-1) as string));
}

function capture(
  command: string,
  args: readonly string[],
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let [stdout, stderr] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.once('error', (error) =>
      reject(new UnsupportedError(`--torch: ${command} cannot be run: ${error.message}`)),
    );
    child.once('close', (code) => resolve({ code, stdout, stderr }));
  });
}

/** Creates a folder for the recipe's files, and removes it after `body`. */
export async function withTorchFolder<T>(body: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'balora-torch-'));
  try {
    return await body(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** The recipe's flags for a workload. */
export function recipeOptions(
  { method, rank, accumulation, threads, data }: Workload,
  dtype: BenchDType,
): Record<string, string | number> {
  if (data === 'sst2') return { rank, threads: threads ?? 0 }; // always in f32
  return { job: 'step', method, dtype, rank, accumulation, threads: threads ?? 0 };
}

/** Tokens per second of a torch run: of the median step where all have one size, otherwise all tokens over all seconds. */
export function torchRate({ seconds, tokens = [] }: TorchRun): number {
  const equal = tokens.every((count) => count === tokens[0]);
  return equal ? (tokens[0] ?? 0) / median(seconds) : sum(tokens) / sum(seconds);
}

/** Figures of pairs of runs, each one run of balora and then one of torch. */
export function pairsOf(pairs: readonly { balora: StepRow; torch: TorchRun }[]): TorchPairs {
  const rates = pairs.map(({ torch }) => torchRate(torch));
  return {
    version: pairs[0]?.torch.version ?? 'unknown',
    tokensPerSecond: spread(rates),
    peakBytes: median(pairs.map(({ torch }) => torch.peakBytes)),
    speedRatio: spread(pairs.map(({ balora }, i) => balora.tokensPerSecond / (rates[i] as number))),
    memoryRatio: spread(pairs.map(({ balora, torch }) => torch.peakBytes / balora.peakBytes)),
  };
}

/** Figures of the PiSSA job. */
export function torchPissa({ version, seconds, capturedEnergy = 0 }: TorchRun) {
  return { version, seconds: spread(seconds), capturedEnergy };
}

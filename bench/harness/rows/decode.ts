/**
 * Speed of text generation: of decoding one sequence against the memory's, of a batch against one, of prompts against training, and
 * of both against llama.cpp's. The two sides of a figure are measured in turns, each several times in a round; the fastest counts,
 * since a step lasts some milliseconds and waits for both of its threads, so that any other program's moment can only add to it. The
 * figures are medians over the rounds.
 */
import { openCachedSession } from '../../../lib/generate/cached_session.ts';
import { argmax } from '../../../lib/generate/scores.ts';
import type { CausalLM } from '../../../lib/models/index.ts';
import { noGrad } from '../../../lib/tensor.ts';
import { type Continued, llamaObstacle, startLlama } from '../llama.ts';
import { bandwidthReader } from '../machine.ts';
import { median } from '../statistics.ts';
import { openSubject } from '../subject.ts';
import type { BenchDType, RatioRow, UnavailableRow } from '../types.ts';

/** The figures of decoding that are compared, each a row of its own. */
export const kDecodeRows = {
  /** Share of the bound that reading the weights once a token sets. */
  'decode-bandwidth': bandwidthRow,
  /** Tokens per second of 16 sequences over those of one. */
  'decode-16-sequences': batchRow,
  /** Tokens per second of prompts over those of a training forward. */
  'prefill-over-forward': prefillRow,
  /** Tokens per second of one sequence over llama.cpp's. */
  'decode-over-llama': llamaDecodeRow,
  /** Tokens per second of prompts over llama.cpp's. */
  'prefill-over-llama': llamaPrefillRow,
} as const;

export interface DecodeInput {
  readonly name: keyof typeof kDecodeRows;
  readonly shape: string;
  readonly model: string | undefined;
  readonly dtype: BenchDType;
}

type Figures = Pick<RatioRow, 'value' | 'meaning'>;

interface Setting {
  /** Whether the row is only tried out, on tiny sizes. */
  readonly trial: boolean;
  /** The path of the model, where it is not of random weights. */
  readonly path: string | undefined;
}

const kPrompt = 64;
const kWarmup = 8;
const kRounds = 8;
const kLlamaRounds = 4;
const kStepsARound = 8;
const kReadsARound = 4;
const kPromptsARound = 2;
const kPromptRows = 512;
const kNewTokens = 33;

/** The rows that need llama.cpp. */
const kBesideLlama: readonly string[] = ['decode-over-llama', 'prefill-over-llama'];

export async function decodeRow({
  name,
  shape,
  model: path,
  dtype,
}: DecodeInput): Promise<RatioRow | UnavailableRow> {
  const obstacle = kBesideLlama.includes(name) ? llamaObstacle(path, dtype) : null;
  if (obstacle !== null) return { kind: 'unavailable', name, dtype, reason: obstacle };
  const { model } = await openSubject({ shape, model: path, dtype });
  const trial = shape === 'tiny' && path === undefined;
  try {
    return { kind: 'ratio', name, dtype, ...(await kDecodeRows[name](model, { trial, path })) };
  } finally {
    model.dispose();
  }
}

const promptOf = ({ vocabSize }: CausalLM, length: number, seed: number): Int32Array =>
  Int32Array.from({ length }, (_, i) => (seed + 7919 * i) % vocabSize);

async function timed(body: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await body();
  return (performance.now() - start) / 1000;
}

/** The least of several measurements. */
async function fastest(count: number, measure: () => Promise<number>): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let n = 0; n < count; n++) least = Math.min(least, await measure());
  return least;
}

/** Measures functions in turns, and returns the median of each. */
async function medians(
  measures: readonly (() => Promise<number>)[],
  rounds: number,
): Promise<number[]> {
  const found: number[][] = measures.map(() => []);
  for (let n = 0; n < rounds; n++) {
    for (const [i, measure] of measures.entries()) found[i]?.push(await measure());
  }
  return found.map((values) => median(values));
}

/** Sequences that have been decoded for a while; the next token is read on the host at each step. */
async function decoding(
  model: CausalLM,
  sequences: number,
): Promise<{ readonly stepSeconds: () => Promise<number>; readonly end: () => void }> {
  const maxLength = kPrompt + kWarmup + kRounds * kStepsARound;
  const session = openCachedSession(model, { run: noGrad, maxLength });
  const prompts = Array.from({ length: sequences }, (_, i) => promptOf(model, kPrompt, i));
  const started = await session.prefill(prompts);
  const numbers = started.map(({ sequence }) => sequence);
  let tokens = started.map(({ logits }) => argmax(logits));
  const step = async (): Promise<void> => {
    tokens = (await session.step(numbers, tokens)).map((logits) => argmax(logits));
  };
  for (let n = 0; n < kWarmup; n++) await step();
  const stepSeconds = (): Promise<number> => fastest(kStepsARound, () => timed(step));
  return { stepSeconds, end: () => session.dispose() };
}

/** Bytes of the weights that a token reads: all but an embedding of which it reads one row. */
function bytesPerToken(model: CausalLM): number {
  const bytes = (size: number): number => size * (model.dtype === 'bf16' ? 2 : 4);
  const embedding = /(embed_tokens|wte|wpe)\.weight$/;
  return [...model.namedParameters()].reduce((sum, [name, weight]) => {
    const read = !embedding.test(name) || weight === model.head.weight;
    return sum + (read ? bytes(weight.size) : 0);
  }, 0);
}

async function bandwidthRow(model: CausalLM, { trial }: Setting): Promise<Figures> {
  const { stepSeconds, end } = await decoding(model, 1);
  const reader = bandwidthReader({ trial });
  const readSeconds = (): Promise<number> => fastest(kReadsARound, reader.readSeconds);
  const measures = [stepSeconds, readSeconds];
  const [seconds, read] = (await medians(measures, kRounds)) as [number, number];
  end();
  reader.dispose();
  const bytes = bytesPerToken(model);
  const bandwidth = reader.bytes / read;
  const bound = bandwidth / bytes;
  return {
    value: 1 / seconds / bound,
    meaning:
      `tokens/s of one sequence over the bound of memory: ${(1 / seconds).toFixed(1)} over ${bound.toFixed(1)}, ` +
      `${(bytes / 1e6).toFixed(1)} MB of weights a token at ${(bandwidth / 1e9).toFixed(1)} GB/s`,
  };
}

async function batchRow(model: CausalLM): Promise<Figures> {
  const [single, batch] = [await decoding(model, 1), await decoding(model, 16)];
  const measures = [single.stepSeconds, batch.stepSeconds];
  const [one, many] = (await medians(measures, kRounds)) as [number, number];
  single.end();
  batch.end();
  return {
    value: (16 * one) / many,
    meaning: `tokens/s of 16 sequences over those of one: ${(16 / many).toFixed(1)} over ${(1 / one).toFixed(1)}`,
  };
}

async function prefillRow(model: CausalLM): Promise<Figures> {
  const prompt = promptOf(model, kPromptRows, 3);
  const session = openCachedSession(model, { run: noGrad, maxLength: kPromptRows });
  const prefill = async (): Promise<void> => {
    const [started] = await session.prefill([prompt]);
    session.release(started?.sequence as number);
  };
  const batch = {
    inputIds: prompt,
    positions: Int32Array.from(prompt, (_, i) => i),
    cuSeqlens: Int32Array.of(0, kPromptRows),
  };
  const forward = async (): Promise<void> => {
    using hidden = noGrad(() => model.forward(batch, { rows: [kPromptRows - 1] }));
    using logits = noGrad(() => model.logits(hidden));
    await logits.data();
  };
  for (const warmup of [prefill, forward, prefill, forward]) await warmup();
  const measures = [prefill, forward].map(
    (pass) => () => fastest(kPromptsARound, () => timed(pass)),
  );
  const [own, training] = (await medians(measures, kRounds)) as [number, number];
  session.dispose();
  return {
    value: training / own,
    meaning:
      `tokens/s of a prompt of ${kPromptRows} tokens over those of a training forward: ` +
      `${(kPromptRows / own).toFixed(0)} over ${(kPromptRows / training).toFixed(0)}`,
  };
}

/** Reads a prompt and continues it greedily. */
async function continued(
  model: CausalLM,
  prompt: Int32Array,
  newTokens: number,
): Promise<Continued> {
  const session = openCachedSession(model, { run: noGrad, maxLength: prompt.length + newTokens });
  const start = performance.now();
  const [started] = await session.prefill([prompt]);
  const { sequence, logits } = started as NonNullable<typeof started>;
  const tokens = [argmax(logits)];
  const promptSeconds = (performance.now() - start) / 1000;
  const next = async (): Promise<void> => {
    const [row] = await session.step([sequence], [tokens.at(-1) as number]);
    tokens.push(argmax(row as Float32Array));
  };
  const tokenSeconds = await fastest(newTokens - 1, () => timed(next));
  session.dispose();
  return { promptSeconds, tokenSeconds, tokens };
}

/** Medians of both sides, for a prompt of 512 tokens and 33 new ones. */
async function besideLlama(
  model: CausalLM,
  { path }: Setting,
): Promise<{ own: Continued; theirs: Continued }> {
  const prompt = promptOf(model, kPromptRows, 3);
  const llama = await startLlama(path as string, kPromptRows + kNewTokens);
  const sides: [Continued[], Continued[]] = [[], []];
  try {
    for (let n = 0; n <= kLlamaRounds; n++) {
      const own = await continued(model, prompt, kNewTokens);
      const theirs = await llama.run(Array.from(prompt), kNewTokens);
      if (n === 0) continue; // warm-up
      sides[0].push(own);
      sides[1].push(theirs);
    }
  } finally {
    await llama.dispose();
  }
  const [own, theirs] = sides.map((runs) => ({
    promptSeconds: median(runs.map(({ promptSeconds }) => promptSeconds)),
    tokenSeconds: median(runs.map(({ tokenSeconds }) => tokenSeconds)),
    tokens: (runs[0] as Continued).tokens,
  })) as [Continued, Continued];
  return { own, theirs };
}

/** Number of tokens that two continuations have in common at their beginning. */
function commonTokens(a: Continued, b: Continued): number {
  const differing = a.tokens.findIndex((token, i) => token !== b.tokens[i]);
  return differing < 0 ? a.tokens.length : differing;
}

async function llamaDecodeRow(model: CausalLM, setting: Setting): Promise<Figures> {
  const { own, theirs } = await besideLlama(model, setting);
  const rate = ({ tokenSeconds }: Continued): number => 1 / tokenSeconds;
  return {
    value: rate(own) / rate(theirs),
    meaning:
      `tokens/s of one sequence over those of llama.cpp on the same weights in bf16, at ${kPromptRows} tokens of context: ` +
      `${rate(own).toFixed(1)} over ${rate(theirs).toFixed(1)}; the first ${commonTokens(own, theirs)} of ${kNewTokens} greedy tokens are the same`,
  };
}

async function llamaPrefillRow(model: CausalLM, setting: Setting): Promise<Figures> {
  const { own, theirs } = await besideLlama(model, setting);
  const rate = ({ promptSeconds }: Continued): number => kPromptRows / promptSeconds;
  return {
    value: rate(own) / rate(theirs),
    meaning:
      `tokens/s of a prompt of ${kPromptRows} tokens to the first new one over those of llama.cpp on the same weights in bf16: ` +
      `${rate(own).toFixed(0)} over ${rate(theirs).toFixed(0)}`,
  };
}

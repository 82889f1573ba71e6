/** Speed of text generation: of decoding one sequence against the memory's, of a batch against one, of prompts against training. */
import { openCachedSession } from '../../../lib/generate/cached_session.ts';
import type { CausalLM } from '../../../lib/models/index.ts';
import { noGrad } from '../../../lib/tensor.ts';
import { memoryBandwidth } from '../machine.ts';
import { median } from '../statistics.ts';
import { openSubject } from '../subject.ts';
import type { BenchDType, RatioRow } from '../types.ts';

/** The figures of decoding that are compared, each a row of its own. */
export const kDecodeRows = {
  /** Share of the bound that reading the weights once a token sets. */
  'decode-bandwidth': bandwidthRow,
  /** Tokens per second of 16 sequences over those of one. */
  'decode-16-sequences': batchRow,
  /** Tokens per second of prompts over those of a training forward. */
  'prefill-over-forward': prefillRow,
} as const;

export interface DecodeInput {
  readonly name: keyof typeof kDecodeRows;
  readonly shape: string;
  readonly model: string | undefined;
  readonly dtype: BenchDType;
}

type Figures = Pick<RatioRow, 'value' | 'meaning'>;

const kPrompt = 64;
const kTokens = 48;
const kWarmup = 8;
const kPromptRows = 512;

export async function decodeRow({
  name,
  shape,
  model: path,
  dtype,
}: DecodeInput): Promise<RatioRow> {
  const { model } = await openSubject({ shape, model: path, dtype });
  const trial = shape === 'tiny' && path === undefined;
  try {
    return { kind: 'ratio', name, dtype, ...(await kDecodeRows[name](model, { trial })) };
  } finally {
    model.dispose();
  }
}

const promptOf = ({ vocabSize }: CausalLM, length: number, seed: number): Int32Array =>
  Int32Array.from({ length }, (_, i) => (seed + 7919 * i) % vocabSize);

/** Median seconds of a step that adds a token to each of so many sequences; the next token is read on the host. */
async function stepSeconds(model: CausalLM, sequences: number): Promise<number> {
  const session = openCachedSession(model, { run: noGrad, maxLength: kPrompt + kTokens });
  const prompts = Array.from({ length: sequences }, (_, i) => promptOf(model, kPrompt, i));
  const numbers = (await session.prefill(prompts)).map(({ sequence }) => sequence);
  const seconds: number[] = [];
  for (let n = 0; n < kTokens; n++) {
    const tokens = numbers.map((i) => (31 * (n + i)) % model.vocabSize);
    const start = performance.now();
    await session.step(numbers, tokens);
    if (n >= kWarmup) seconds.push((performance.now() - start) / 1000);
  }
  session.dispose();
  return median(seconds);
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

async function bandwidthRow(model: CausalLM, { trial }: { trial: boolean }): Promise<Figures> {
  const seconds = await stepSeconds(model, 1);
  const bandwidth = await memoryBandwidth(trial);
  const bytes = bytesPerToken(model);
  const bound = bandwidth / bytes;
  return {
    value: 1 / seconds / bound,
    meaning:
      `tokens/s of one sequence over the bound of memory: ${(1 / seconds).toFixed(1)} over ${bound.toFixed(1)}, ` +
      `${(bytes / 1e6).toFixed(1)} MB of weights a token at ${(bandwidth / 1e9).toFixed(1)} GB/s`,
  };
}

async function batchRow(model: CausalLM): Promise<Figures> {
  const one = 1 / (await stepSeconds(model, 1));
  const many = 16 / (await stepSeconds(model, 16));
  return {
    value: many / one,
    meaning: `tokens/s of 16 sequences over those of one: ${many.toFixed(1)} over ${one.toFixed(1)}`,
  };
}

async function prefillRow(model: CausalLM): Promise<Figures> {
  const prompt = promptOf(model, kPromptRows, 3);
  const session = openCachedSession(model, { run: noGrad, maxLength: kPromptRows });
  const timed = async (body: () => Promise<unknown>): Promise<number> => {
    const start = performance.now();
    await body();
    return (performance.now() - start) / 1000;
  };
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
  const [own, training]: [number[], number[]] = [[], []];
  for (let n = 0; n < 8; n++) {
    own.push(await timed(prefill));
    training.push(await timed(forward));
  }
  session.dispose();
  const rate = (seconds: readonly number[]): number => kPromptRows / median(seconds.slice(2));
  return {
    value: rate(own) / rate(training),
    meaning:
      `tokens/s of a prompt of ${kPromptRows} tokens over those of a training forward: ` +
      `${rate(own).toFixed(0)} over ${rate(training).toFixed(0)}`,
  };
}

/**
 * llama.cpp through node-llama-cpp, a development dependency, on the weights of the model that is measured: prompts and greedy
 * decoding by its own prebuilt binary, on as many threads as balora uses.
 */
import { readdirSync, statSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { getNumThreads } from '../../lib/runtime.ts';
import { writeBf16Gguf } from './bf16_gguf.ts';

/** The part of node-llama-cpp that is used. */
interface LlamaModule {
  getLlama(options: {
    gpu: false;
    build: 'never';
    skipDownload: true;
    maxThreads: number;
    logLevel: string;
  }): Promise<Llama>;
}
interface Llama {
  loadModel(options: { modelPath: string }): Promise<LlamaModel>;
  dispose(): Promise<void>;
}
interface LlamaModel {
  createContext(options: {
    contextSize: number;
    batchSize: number;
    threads: { ideal: number; min: number };
  }): Promise<{ getSequence(): LlamaSequence }>;
}
interface LlamaSequence {
  evaluate(tokens: number[], options: { temperature: 0 }): AsyncIterable<number>;
  clearHistory(): Promise<void>;
}

/** A prompt that was read and continued. */
export interface Continued {
  /** Seconds to the first new token. */
  readonly promptSeconds: number;
  /** Seconds of the fastest of the tokens after the first. */
  readonly tokenSeconds: number;
  readonly tokens: readonly number[];
}

/** A running llama.cpp. */
export interface LlamaRunner {
  /** Reads a prompt and continues it greedily by so many tokens, end tokens or not. */
  run(prompt: readonly number[], newTokens: number): Promise<Continued>;
  dispose(): Promise<void>;
}

/** The reason for which llama.cpp cannot be run on a model; null: it can. */
export function llamaObstacle(model: string | undefined, dtype: string): string | null {
  if (dtype !== 'bf16') return 'llama.cpp is given the weights in bf16: measure with --dtype bf16';
  if (model === undefined || ggufOf(model) === null) {
    return 'needs --model, a GGUF file or a folder with one, from which llama.cpp gets its weights';
  }
  return null;
}

/** Starts llama.cpp on the weights of a model, rounded to bf16. */
export async function startLlama(model: string, contextSize: number): Promise<LlamaRunner> {
  const name = 'node-llama-cpp'; // not a literal, so that its types, of which four are used, are not checked
  const { getLlama } = (await import(name)) as LlamaModule;
  const folder = await mkdtemp(join(tmpdir(), 'balora-llama-'));
  const file = join(folder, 'bf16.gguf');
  const threads = getNumThreads();
  try {
    await writeBf16Gguf(ggufOf(model) as string, file);
    const options = { gpu: false, build: 'never', skipDownload: true, logLevel: 'error' } as const;
    const llama = await getLlama({ ...options, maxThreads: threads });
    const loaded = await llama.loadModel({ modelPath: file });
    const context = await loaded.createContext({
      contextSize,
      batchSize: 512,
      threads: { ideal: threads, min: threads },
    });
    const sequence = context.getSequence();
    return {
      run: (prompt, newTokens) => continued(sequence, prompt, newTokens),
      dispose: async () => {
        await llama.dispose();
        await rm(folder, { recursive: true });
      },
    };
  } catch (error) {
    await rm(folder, { recursive: true });
    throw error;
  }
}

async function continued(
  sequence: LlamaSequence,
  prompt: readonly number[],
  newTokens: number,
): Promise<Continued> {
  await sequence.clearHistory();
  const tokens: number[] = [];
  let last = performance.now();
  let promptSeconds = 0;
  let tokenSeconds = Number.POSITIVE_INFINITY;
  for await (const token of sequence.evaluate([...prompt], { temperature: 0 })) {
    const now = performance.now();
    const seconds = (now - last) / 1000;
    if (tokens.length === 0) promptSeconds = seconds;
    else tokenSeconds = Math.min(tokenSeconds, seconds);
    tokens.push(token);
    last = now;
    if (tokens.length === newTokens) break;
  }
  return { promptSeconds, tokenSeconds, tokens };
}

/** The GGUF file at a path or in a folder; null: there is none. */
function ggufOf(model: string): string | null {
  if (!statSync(model).isDirectory()) return model.endsWith('.gguf') ? model : null;
  const found = readdirSync(model).find((name) => name.endsWith('.gguf'));
  return found === undefined ? null : join(model, found);
}

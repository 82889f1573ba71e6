/** llama.cpp through node-llama-cpp, as a reader of exported files: logits in F32, greedy tokens, ids of texts. */
import type { Llama, Token } from 'node-llama-cpp';

/** A model in llama.cpp, with a cache of keys and values in F32. */
export interface LlamaCpp {
  /** Logits (V) after the last of some ids. */
  logits(ids: readonly number[]): Promise<Float32Array>;
  /** The most probable ids after some, at most `count`, up to one that ends the text. */
  greedy(ids: readonly number[], count: number): Promise<number[]>;
  tokenize(text: string): number[];
  dispose(): Promise<void>;
}

let opened: Promise<Llama | string> | null = null;

/** llama.cpp, or the reason why it cannot run here. */
async function llamaCpp(): Promise<Llama | string> {
  const options = {
    ...{ gpu: false, build: 'never', skipDownload: true, progressLogs: false, maxThreads: 2 },
    logLevel: 'error',
  } as const;
  try {
    const { getLlama } = await import('node-llama-cpp');
    return await getLlama(options as Parameters<typeof getLlama>[0] & object);
  } catch (error) {
    return `node-llama-cpp has no binary for this machine: ${(error as Error).message}`;
  }
}

/** The reason why llama.cpp cannot run here; null: it can. */
export async function noLlamaCpp(): Promise<string | null> {
  opened ??= llamaCpp();
  const found = await opened;
  return typeof found === 'string' ? found : null;
}

/** Loads a model, with an adapter if one is given. */
export async function openLlamaCpp(modelPath: string, adapter?: string): Promise<LlamaCpp> {
  opened ??= llamaCpp();
  const llama = await opened;
  if (typeof llama === 'string') throw new Error(llama);
  const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
  const context = await model.createContext({
    ...{ contextSize: 512, batchSize: 512, threads: 1, flashAttention: false },
    ...{ experimentalKvCacheKeyType: 'F32', experimentalKvCacheValueType: 'F32' },
    ...(adapter !== undefined && { lora: { adapters: [{ filePath: adapter, scale: 1 }] } }),
  });
  const sequence = context.getSequence();
  return {
    tokenize: (text) => model.tokenize(text, true),
    async logits(ids) {
      await sequence.clearHistory();
      const next = { logits: true, token: true, options: { temperature: 0 } } as const;
      const input = ids.map((id, i) =>
        i < ids.length - 1 ? (id as Token) : ([id as Token, { generateNext: next }] as const),
      );
      const found = (await sequence.controlledEvaluate(input as never)).at(-1)?.next.logits;
      const values = new Float32Array(found?.size ?? 0);
      for (const [id, value] of found ?? []) values[id] = value;
      return values;
    },
    async greedy(ids, count) {
      await sequence.clearHistory();
      const found: number[] = [];
      const tokens = sequence.evaluate(ids as Token[], { temperature: 0, yieldEogToken: true });
      for await (const token of tokens) {
        found.push(token);
        if (model.isEogToken(token) || found.length >= count) break;
      }
      return found;
    },
    async dispose() {
      await context.dispose();
      await model.dispose();
    },
  };
}

/** KL(p || q) in nats of the distributions with these logits. */
export function divergence(p: Float32Array, q: Float32Array): number {
  const [a, b] = [logSumExp(p), logSumExp(q)];
  return p.reduce((sum, value, i) => {
    const logP = value - a;
    return sum + Math.exp(logP) * (logP - ((q[i] as number) - b));
  }, 0);
}

function logSumExp(values: Float32Array): number {
  const most = values.reduce((largest, value) => Math.max(largest, value), -Infinity);
  return most + Math.log(values.reduce((sum, value) => sum + Math.exp(value - most), 0));
}

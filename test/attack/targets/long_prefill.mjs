// Long prefills with a real model, aborted at any moment beside other work on the same engine: what is aborted ends soon, what is not has its
// bits, a conversation goes on from its cache, and no memory stays.
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { AutoModelForCausalLM, generate, memoryStats, openChat, synchronize, Tokenizer } from 'balora';
import { Finding, require } from '../finding.mjs';

const kFile = fileURLToPath(
  new URL('../../../../shared/models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf', import.meta.url),
);
/** The end is due after this much time; the machine may be busy. */
const kDueMs = 5000;
const kShort = { ids: [[1, 2, 3, 4], [5, 6]], maxNewTokens: 4, logprobs: 0 };

const promptOf = ({ length, seed }) => Array.from({ length }, (_, i) => 5 + ((i * 7919 + seed) % 49_000));
const numbersOf = (results) => JSON.stringify(results.map(({ tokens, logprobs }) => [tokens, logprobs]));

/** Leaves the loop over a generation at its first token, while others of its sequences are still being read. */
async function leaveAtFirst(stream) {
  for await (const _ of stream) break;
  return stream.result;
}

export default {
  what: 'long prompts of SmolLM2 that are aborted at any moment, beside other generations and in conversations',
  share: 2,
  perProcess: 4,
  hangSeconds: 120,
  slowSeconds: 120,
  peakMiB: 6144,
  growthMiB: 1024,
  missing: () => (existsSync(kFile) ? null : 'it needs ../shared/models/smollm2-135m-instruct-gguf'),

  async open() {
    const model = await AutoModelForCausalLM.fromPretrained(kFile, { dtype: 'f32' });
    const tokenizer = await Tokenizer.fromPretrained(kFile);
    // The model keeps its table of positions, which is as long as the longest prompt: it is made here, so that what stays later is a leak.
    const stop = new AbortController();
    const longest = generate(model, { ids: [promptOf({ length: 8000, seed: 0 })], maxNewTokens: 2, signal: stop.signal }).result;
    setTimeout(() => stop.abort(), 500);
    await longest;
    return { model, tokenizer, short: numbersOf(await generate(model, kShort).result) };
  },

  input(random) {
    return {
      kind: random.pick(['prompts', 'leave', 'chat']),
      prompts: random.several(1, random.pick([1, 3, 128]), () => ({ length: random.pick([50, 700, 4000, 8000]), seed: random.below(1000) })),
      afterMs: random.pick([0, 1, 20, 300, 1500]),
      besides: random.chance(0.5),
    };
  },

  async run({ kind, prompts, afterMs, besides }, { model, tokenizer, short }) {
    await synchronize();
    const before = memoryStats().liveBytes;
    const stop = new AbortController();
    const chat = kind === 'chat' ? openChat(model, { tokenizer, maxNewTokens: 3 }) : null;
    const first = chat && (await chat.send('Good day.').result);
    const { signal } = stop;
    // One that is left waits for its first token, so that its prompts are short.
    const ids = (kind === 'leave' ? [{ length: 50, seed: 1 }, { length: 300, seed: 2 }] : prompts).map(promptOf);
    const begin = () => {
      if (chat !== null) return chat.send('one two three '.repeat(prompts[0].length / 4), { signal }).result;
      const stream = generate(model, { ids, batchSize: 128, maxNewTokens: 2, ...(kind === 'prompts' && { signal }) });
      if (kind === 'prompts') return stream.result;
      return leaveAtFirst(stream);
    };
    const ending = begin();
    const other = besides ? generate(model, kShort).result : null;
    await sleep(afterMs);
    const begun = performance.now();
    stop.abort();
    await ending;
    if (kind !== 'leave') {
      const took = performance.now() - begun;
      if (took > kDueMs && other === null) throw new Finding(`an aborted ${kind} took ${Math.round(took)} ms to end`, 'slow end');
    }
    if (other !== null) require(numbersOf(await other) === short, 'a generation beside an aborted one has other numbers');
    require(numbersOf(await generate(model, kShort).result) === short, 'a generation after an aborted one has other numbers');
    if (chat !== null) {
      const again = await chat.send('And you?').result;
      require(again.cachedTokens > 0 && first.tokens.length > 0, 'a conversation has lost its cache by an abort');
      chat.dispose();
    }
    await synchronize();
    const grown = memoryStats().liveBytes - before;
    require(grown < 2 ** 20, `${grown} bytes stay after an abort`);
  },
};

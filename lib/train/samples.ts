/** Answers to prompts of the user's at each evaluation of a run, which show what the numbers do not. Training is the same without them. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { ArgumentError } from '../errors.ts';
import { type Generator, generate } from '../generate/generate.ts';
import { type GenerationSettings, generationOptions } from '../generate/options.ts';
import {
  encodePrompts,
  PROMPT_KEYS,
  type PromptInput,
  type TokenIds,
} from '../generate/prompts.ts';
import type { FinishReason } from '../generate/sequence.ts';
import { CausalLM, KvCache, type Model, Seq2SeqLM } from '../models/index.ts';
import { DTYPE_BYTES } from '../tensor.ts';
import type { ChatMessage } from '../text/chat_template.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { PassMemory } from './memory_plan.ts';

/** Prompts that a run answers at each evaluation, and the ends of the answers. */
export interface SamplePrompts
  extends PromptInput,
    Pick<GenerationSettings, 'maxNewTokens' | 'stopStrings' | 'eosTokenIds'> {
  /** The model's tokenizer. */
  tokenizer: Tokenizer;
}

/** A prompt and the answer that the model gave to it, each token the most likely one. */
export interface Sample {
  /** The prompt as it was given: a text, a conversation or ids. */
  readonly prompt: string | readonly ChatMessage[] | TokenIds;
  readonly text: string;
  /** Number of new tokens. */
  readonly tokens: number;
  readonly finishReason: FinishReason;
}

const kKeys: readonly string[] = [
  'tokenizer',
  ...PROMPT_KEYS,
  'maxNewTokens',
  'stopStrings',
  'eosTokenIds',
] satisfies (keyof SamplePrompts)[];

/**
 * Checks prompts before the run.
 * @throws ArgumentError naming samplePrompts, and UnsupportedError as generate() does
 */
export function checkSamplePrompts(tuned: TunedModel<Model>, given: SamplePrompts): void {
  const { model } = tuned;
  if (!(model instanceof CausalLM || model instanceof Seq2SeqLM)) {
    throw new ArgumentError(`samplePrompts: a ${model.modelType} classifier writes no text`);
  }
  if (given.tokenizer === undefined) {
    throw new ArgumentError("samplePrompts: they need the model's tokenizer; pass tokenizer");
  }
  const other = Object.keys(given).find((key) => !kKeys.includes(key));
  if (other !== undefined) {
    throw new ArgumentError(
      `samplePrompts: they are answered greedily, without ${other}; known: ${kKeys.join(', ')}`,
    );
  }
  try {
    generate(tuned as Generator, { ...given }); // which checks its options, and does not begin
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new ArgumentError(`samplePrompts: ${error.message.replace(/^generate: /, '')}`);
  }
}

/** Copies of a sequence's logits in f32 at one time, in the pass and while a token is chosen. */
const kLogitCopies = 4;

/** The rows of the prompts' pass together, and the bytes that the answers take beside it: their keys and values, and logits. */
export function samplingMemory(model: Model, given: SamplePrompts): PassMemory {
  const { tokenizer, maxNewTokens = generationOptions.maxNewTokens.default as number } = given;
  const prompts = encodePrompts(given, { tokenizer, model });
  const rows = prompts.reduce((sum, { length }) => sum + length, 0);
  const positions = rows + prompts.length * maxNewTokens;
  const { cachedLayers, dtype, vocabSize } = model as CausalLM;
  const cache = KvCache.bytes(cachedLayers ?? [], dtype, positions);
  return { rows, bytes: cache + kLogitCopies * DTYPE_BYTES.f32 * prompts.length * vocabSize };
}

/** Answers prompts with the model as it is; null where the signal stopped that. */
export async function answerSamples(
  tuned: TunedModel<Model>,
  given: SamplePrompts,
  signal: AbortSignal | undefined,
): Promise<Sample[] | null> {
  const results = await generate(tuned as Generator, {
    ...given,
    ...(signal !== undefined && { signal }),
  }).result;
  if (signal?.aborted) return null;
  const prompts = promptsOf(given);
  return results.map(({ text, tokens, finishReason }, i) => {
    return { prompt: prompts[i] as Sample['prompt'], text, tokens: tokens.length, finishReason };
  });
}

/** The prompts one by one. */
function promptsOf({ prompt, messages, ids }: PromptInput): readonly Sample['prompt'][] {
  if (prompt !== undefined) return typeof prompt === 'string' ? [prompt] : prompt;
  if (messages !== undefined) {
    const list = messages as readonly (ChatMessage | readonly ChatMessage[])[];
    const isOne = !Array.isArray(list[0]);
    return isOne ? [list as readonly ChatMessage[]] : (list as readonly (readonly ChatMessage[])[]);
  }
  const list = ids as TokenIds | readonly TokenIds[];
  const isOne = list instanceof Int32Array || typeof list[0] === 'number';
  return (isOne ? [list as TokenIds] : (list as readonly TokenIds[])).map((one) => [...one]);
}

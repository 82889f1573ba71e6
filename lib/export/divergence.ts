/** How far a file's predictions are from those of the model that was written to it. */
import { ArgumentError } from '../errors.ts';
import { AutoModelForCausalLM, type CausalLM, type Model } from '../models/index.ts';
import { div, exp, linear, logSoftmax, mul, slice, sub, sum, tanh } from '../ops/index.ts';
import { computeOwned, scope, type Tensor } from '../tensor.ts';

/** Tokens of a text that are used, of a pass, and of a product with the head. */
const kMostTokens = 2048;
const kWindow = 256;
const kRows = 32;

/** A divergence and the number of tokens that it is the mean of. */
export interface Divergence {
  /** In nats a token. */
  readonly kl: number;
  readonly tokens: number;
}

/**
 * The mean over the tokens of a text of KL(p || q), where p are the predictions of the model as it is now and q those of a file,
 * both computed in f32. The text is read in windows of 256 tokens, up to 2048 tokens of it.
 * @throws ArgumentError for a text without tokens
 */
export async function divergenceOf(
  model: Model,
  path: string,
  ids: readonly number[],
): Promise<Divergence> {
  const used = ids.slice(0, kMostTokens);
  if (used.length === 0)
    throw new ArgumentError('klText: the text has no tokens; give another file');
  const other = await AutoModelForCausalLM.fromPretrained(path, { device: model.device });
  try {
    let total = 0;
    for (let at = 0; at < used.length; at += kWindow) {
      const window = Int32Array.from(used.slice(at, at + kWindow));
      const parts = partsOf(model as CausalLM, other, window);
      for (const part of parts) {
        total += await part.item();
        part.dispose();
      }
    }
    return { kl: total / used.length, tokens: used.length };
  } finally {
    other.dispose();
  }
}

/** The sums of the divergences of the rows of a window, a tensor for each part of them. */
function partsOf(model: CausalLM, other: CausalLM, inputIds: Int32Array): Tensor[] {
  const batch = {
    inputIds,
    positions: inputIds.map((_, i) => i),
    cuSeqlens: Int32Array.of(0, inputIds.length),
  };
  return computeOwned(() => {
    const [own, file] = [model.forward(batch), other.forward(batch)];
    return Array.from({ length: Math.ceil(inputIds.length / kRows) }, (_, i) => {
      const rows = [i * kRows, Math.min((i + 1) * kRows, inputIds.length)] as const;
      return scope(() => {
        const [p, q] = [logProbabilities(model, own, rows), logProbabilities(other, file, rows)];
        return sum(mul(exp(p), sub(p, q)));
      });
    });
  });
}

/** Logarithms of the probabilities (N,V) of some rows of hidden states. */
function logProbabilities(
  { head: { weight, softcap } }: CausalLM,
  hidden: Tensor,
  [start, stop]: readonly [number, number],
): Tensor {
  const logits = linear(slice(hidden, 0, { start, stop }), weight);
  return logSoftmax(softcap === 0 ? logits : mul(tanh(div(logits, softcap)), softcap));
}

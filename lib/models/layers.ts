/**
 * The loop over a transformer's layers, shared by all architectures. A layer is a few residual branches (attention, mlp); the sum
 * that flows through them is the residual stream. The loop does three things that a layer cannot do alone. It computes every
 * residual sum together with the norm that reads it, also across layers. It decides what a layer keeps for backward. And it drops
 * the rows that are not in the result after the last attention, since no row reads another after that.
 */
import { checkpoint, recomputing } from '../autograd.ts';
import { Linear, Module, type Norm } from '../nn/index.ts';
import { add, indexSelect } from '../ops/index.ts';
import { Tensor } from '../tensor.ts';

/**
 * A residual branch of a layer, which replaces the stream by
 *
 *     postNorm(stream + forward(attention(preNorm(stream)))).
 *
 * A norm that is left out does nothing: Llama has a preNorm alone, BERT a postNorm alone. A norm of the branch's own output belongs
 * into `forward`.
 */
export interface Branch<Shared> {
  readonly preNorm?: Norm | undefined;
  readonly postNorm?: Norm;
  /** The part in which rows read each other, attention up to its output projection: x (N,C) -> (N,W). Left out: there is none. */
  readonly attention?: ((x: Tensor, shared: Shared) => Tensor) | undefined;
  /** The rest, which is computed row by row: (M,W) -> (M,C). */
  forward(attended: Tensor): Tensor;
}

/**
 * Tensors that a layer keeps for backward. The choices are:
 *
 * - `saved`: all that its gradients read.
 * - `lean`: the same without norms and activations, which backward recomputes in one pass over the kept rows; the same gradients.
 * - `thin`: the same without the factor `up` of gated activations, whose product backward repeats; the same gradients.
 * - `checkpointed`: only its input; backward computes the layer again. The same gradients up to rounding.
 */
export type LayerKeep = 'saved' | 'lean' | 'thin' | 'checkpointed';

/** The setting of recomputation for a layer that is not checkpointed. */
const kRecomputed = { saved: false, lean: true, thin: 'products' } as const;

/** A layer, made of residual branches in order. `Shared` is a plain object of inputs that all layers read besides their rows. */
export abstract class Layer<Shared> extends Module {
  /** Whether passes leave it out, as those do that measure the memory of other layers. */
  isSkipped = false;

  abstract branches(): readonly Branch<Shared>[];
}

export interface LayerRun<Shared> {
  /** Inputs of all layers besides their rows: tensors, nested in plain objects and arrays, and plain values. */
  readonly shared: Shared;
  /** The norm after the last layer; null where there is none. */
  readonly last: Norm | null;
  /** (M) i32: the rows of the result, see {@link ModelInputs}; null: all. */
  readonly wanted: Tensor | null;
  /** The choice for layer i and a batch of so many rows. */
  readonly keep: (layer: number, rows: number) => LayerKeep;
  /** Rows of the batch, where fewer are computed: attention keeps something of each. Default: those of `embedded`. */
  readonly batchRows?: number | undefined;
  /** Called with the stream before the first layer (0) and after the i-th (i), but for the last, whose rows are the result's. */
  readonly onLayer?: ((layer: number, stream: Tensor) => void) | null;
}

/** The residual stream, and the input of the next branch; null where the next branch computes its norm itself. */
interface State {
  readonly stream: Tensor;
  readonly x: Tensor | null;
}

/**
 * Runs the layers one after the other.
 * @param embedded (N,C)
 * @returns (N,C) after the last norm, or the wanted rows of it
 */
export function runLayers<Shared>(
  all: readonly Layer<Shared>[],
  embedded: Tensor,
  { shared, last, wanted, keep, batchRows, onLayer = null }: LayerRun<Shared>,
): Tensor {
  const layers = all.filter(({ isSkipped }) => !isSkipped);
  let state: State = { stream: embedded, x: null };
  onLayer?.(0, embedded);
  const rows = batchRows ?? (embedded.shape[0] as number);
  const kept = layers.map((_, i) => keep(i, rows));
  for (const [i, layer] of layers.entries()) {
    const following = layers[i + 1];
    const inputs = { shared, wanted: following === undefined ? wanted : null };
    if (kept[i] === 'checkpointed') {
      state = { stream: checkpointed(layer, state.stream, inputs), x: null };
    } else {
      // A checkpointed layer computes its first norm itself.
      const again = kept[i + 1] === 'checkpointed';
      const next = following === undefined ? last : again ? undefined : firstNorm(following);
      const before = state;
      state = recomputing(kRecomputed[kept[i] as 'saved' | 'lean' | 'thin'], () =>
        runLayer(layer, before, inputs, next),
      );
    }
    if (following !== undefined) onLayer?.(i + 1, state.stream);
  }
  return state.x ?? applyNorm(last, state.stream);
}

function firstNorm<Shared>(layer: Layer<Shared>): Norm | null {
  return layer.branches()[0]?.preNorm ?? null;
}

function applyNorm(norm: Norm | null, x: Tensor): Tensor {
  return norm === null ? x : norm.forward(x);
}

/** Inputs of a layer besides the stream; `wanted` is used in the last layer only. */
type LayerInputs<Shared> = Pick<LayerRun<Shared>, 'shared' | 'wanted'>;

/** @param next the norm that reads the stream next; undefined: it is not computed here */
function runLayer<Shared>(
  layer: Layer<Shared>,
  state: State,
  { shared, wanted }: LayerInputs<Shared>,
  next: Norm | null | undefined,
): State {
  const branches = layer.branches();
  const lastAttention = branches.map(({ attention }) => attention !== undefined).lastIndexOf(true);
  return branches.reduce((before, branch, i) => {
    const following = branches[i + 1];
    const chosen = (x: Tensor): Tensor =>
      wanted !== null && i === lastAttention ? indexSelect(x, wanted) : x;
    const x = before.x ?? applyNorm(branch.preNorm ?? null, before.stream);
    const y = branch.forward(chosen(branch.attention?.(x, shared) ?? x));
    const stream = chosen(before.stream);
    const nextNorm = following === undefined ? next : (following.preNorm ?? null);
    return addResidual(branch, y, stream, nextNorm);
  }, state);
}

function addResidual<Shared>(
  { postNorm }: Branch<Shared>,
  y: Tensor,
  stream: Tensor,
  next: Norm | null | undefined,
): State {
  if (postNorm !== undefined) {
    const sum = postNorm.addForward(y, stream)[1];
    return { stream: sum, x: next === undefined ? null : applyNorm(next, sum) };
  }
  if (next) {
    const [sum, x] = next.addForward(y, stream);
    return { stream: sum, x };
  }
  const sum = add(y, stream);
  return { stream: sum, x: next === null ? sum : null };
}

/** Runs a layer as a checkpointed segment from stream to stream. */
function checkpointed<Shared>(
  layer: Layer<Shared>,
  stream: Tensor,
  inputs: LayerInputs<Shared>,
): Tensor {
  // Lean when it is computed again, too, and where it is not: memory is what such a layer is chosen for.
  const segment = (x: Tensor, ...own: Tensor[]): Tensor =>
    recomputing(true, () =>
      runLayer(layer, { stream: x, x: null }, withTensors(inputs, own), undefined),
    ).stream;
  // All tensors that the segment reads must outlive this call, so they are passed as its inputs.
  const given: [Tensor, ...Tensor[]] = [stream, ...tensorsOf(inputs)];
  if (given.some((tensor) => tensor.requiresGrad)) return checkpoint(segment, given);
  if (!isTrained(layer)) return segment(...given);
  // A segment without an input that requires a gradient would not be recorded, and adapters in it would get no gradients: in the
  // first layer of a frozen model the stream gets one, which nobody reads.
  const leaf = stream.detach();
  leaf.requiresGrad = true;
  return checkpoint(segment, [leaf, ...given.slice(1)]);
}

/** Whether something in a layer wants a gradient. */
export function isTrained<Shared>(layer: Layer<Shared>): boolean {
  for (const [, module] of layer.namedModules()) {
    if (module instanceof Linear && module.adapter?.isTrained === true) return true;
  }
  return layer.parameters().some(({ requiresGrad }) => requiresGrad);
}

/** The tensors of a value, in order: itself, or nested in arrays and plain objects. */
function tensorsOf(value: unknown): Tensor[] {
  if (value instanceof Tensor) return [value];
  return value !== null && typeof value === 'object' ? Object.values(value).flatMap(tensorsOf) : [];
}

/** The same value with other tensors in their places. */
function withTensors<T>(value: T, tensors: readonly Tensor[]): T {
  const left = [...tensors];
  const replaced = (part: unknown): unknown => {
    if (part instanceof Tensor) return left.shift();
    if (Array.isArray(part)) return part.map(replaced);
    if (part === null || typeof part !== 'object') return part;
    return Object.fromEntries(Object.entries(part).map(([key, inner]) => [key, replaced(inner)]));
  };
  return replaced(value) as T;
}

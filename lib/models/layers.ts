/**
 * The loop over a transformer's layers, in one place for all architectures. A layer is a few residual branches (attention,
 * mlp); the sum that flows through them is the stream. Three things are decided here: every residual sum is taken together
 * with the norm that reads it, across layers too; what a layer keeps for the backward; and where rows that nobody asks
 * for end: behind the last attention, after which no row reads another.
 */
import { checkpoint, recomputing } from '../autograd.ts';
import { Module, type Norm } from '../nn/index.ts';
import { add, indexSelect } from '../ops/index.ts';
import { Tensor } from '../tensor.ts';

/**
 * stream <- leave(stream + forward(mix(enter(stream)))); a norm that is null does nothing. `enter` alone is the pre-norm
 * block, `leave` alone the post-norm block of BERT. A norm of the branch's own output belongs into forward.
 */
export interface Branch<Shared> {
  readonly enter: Norm | null;
  readonly leave: Norm | null;
  /** The part in which rows see each other, attention up to its last projection: x (N,C) -> (N,W). null: there is none. */
  readonly mix: ((x: Tensor, shared: Shared) => Tensor) | null;
  /** The rest, row by row: (M,W) -> (M,C). */
  forward(mixed: Tensor): Tensor;
}

/**
 * Tensors that a layer keeps for backward.
 * `saved`: all that its gradients read.
 * `lean`: without norms and activations, which one pass over the kept rows recomputes; the same gradients.
 * `checkpointed`: only its input, the layer is computed again; the same gradients up to rounding.
 */
export type LayerKeep = 'saved' | 'lean' | 'checkpointed';

/** A layer: its branches in order. `Shared` is what all layers read besides their rows, a plain object. */
export abstract class Layer<Shared> extends Module {
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

/** The residual sum, and what the next branch reads of it; null where the next branch takes its norm itself. */
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
  layers: readonly Layer<Shared>[],
  embedded: Tensor,
  { shared, last, wanted, keep, batchRows, onLayer = null }: LayerRun<Shared>,
): Tensor {
  let state: State = { stream: embedded, x: null };
  onLayer?.(0, embedded);
  const rows = batchRows ?? (embedded.shape[0] as number);
  const kept = layers.map((_, i) => keep(i, rows));
  for (const [i, layer] of layers.entries()) {
    const following = layers[i + 1];
    const reads = { shared, wanted: following === undefined ? wanted : null };
    if (kept[i] === 'checkpointed') {
      state = { stream: checkpointed(layer, state.stream, reads), x: null };
    } else {
      // A layer that will be computed again takes its first norm inside.
      const again = kept[i + 1] === 'checkpointed';
      const next = following === undefined ? last : again ? undefined : entry(following);
      const before = state;
      state = recomputing(kept[i] === 'lean', () => runLayer(layer, before, reads, next));
    }
    if (following !== undefined) onLayer?.(i + 1, state.stream);
  }
  return state.x ?? normed(last, state.stream);
}

function entry<Shared>(layer: Layer<Shared>): Norm | null {
  return layer.branches()[0]?.enter ?? null;
}

function normed(norm: Norm | null, x: Tensor): Tensor {
  return norm === null ? x : norm.forward(x);
}

/** Inputs of a layer besides its stream; `wanted` is used in the last layer only. */
type Reads<Shared> = Pick<LayerRun<Shared>, 'shared' | 'wanted'>;

/** @param next the norm of whoever reads the stream next; undefined: not here */
function runLayer<Shared>(
  layer: Layer<Shared>,
  state: State,
  { shared, wanted }: Reads<Shared>,
  next: Norm | null | undefined,
): State {
  const branches = layer.branches();
  const lastMix = branches.map(({ mix }) => mix !== null).lastIndexOf(true);
  return branches.reduce((before, branch, i) => {
    const following = branches[i + 1];
    const chosen = (x: Tensor): Tensor =>
      wanted !== null && i === lastMix ? indexSelect(x, wanted) : x;
    const x = before.x ?? normed(branch.enter, before.stream);
    const y = branch.forward(chosen(branch.mix === null ? x : branch.mix(x, shared)));
    const stream = chosen(before.stream);
    return joined(branch, y, stream, following === undefined ? next : following.enter);
  }, state);
}

function joined<Shared>(
  { leave }: Branch<Shared>,
  y: Tensor,
  stream: Tensor,
  next: Norm | null | undefined,
): State {
  if (leave !== null) {
    const sum = leave.addForward(y, stream)[1];
    return { stream: sum, x: next === undefined ? null : normed(next, sum) };
  }
  if (next) {
    const [sum, x] = next.addForward(y, stream);
    return { stream: sum, x };
  }
  const sum = add(y, stream);
  return { stream: sum, x: next === null ? sum : null };
}

/** A layer as a segment from stream to stream. */
function checkpointed<Shared>(layer: Layer<Shared>, stream: Tensor, reads: Reads<Shared>): Tensor {
  const segment = (x: Tensor, ...own: Tensor[]): Tensor =>
    runLayer(layer, { stream: x, x: null }, withTensors(reads, own), undefined).stream;
  // All that the segment reads must outlive this call, so it goes through its inputs.
  const given: [Tensor, ...Tensor[]] = [stream, ...tensorsOf(reads)];
  // A segment none of whose inputs wants a gradient would not be recorded, and adapters in it would get none: the first
  // layer of a frozen model is kept as it is.
  return given.some((tensor) => tensor.requiresGrad)
    ? checkpoint(segment, given)
    : segment(...given);
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

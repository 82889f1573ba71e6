/**
 * What a step must compute, counted from its shapes: the products of the algorithm itself, without recomputation, padding or
 * work below the first adapter; of the last layer, behind its attention, the rows of the loss alone. Terms below one percent
 * (norms, softmax, the SVD term's small products) are left out.
 */
import type { Sizes } from './shapes.ts';

/** One product (m,k) x (k,n), `count` times a step. */
export interface Product {
  readonly m: number;
  readonly k: number;
  readonly n: number;
  readonly count: number;
  /** By a frozen weight, which kernels keep packed; the others are products of two activations. */
  readonly packed: boolean;
}

export interface StepShape {
  readonly sizes: Sizes;
  readonly method: 'balora' | 'lora';
  readonly rank: number;
  /** Rows that the layers compute (tokens, those that segments begin with alike once), rows of the loss, and (sum of squared lengths) of a micro-batch. */
  readonly rows: number;
  readonly supervised: number;
  readonly squaredLengths: number;
  /** Micro-batches of a step. */
  readonly accumulation: number;
}

/** A linear of the model: (input, output) and the inputs it shares with the others of its group. */
interface Group {
  readonly input: number;
  readonly outputs: readonly number[];
  /** Whether it stands behind the attention: in the last layer it then sees the rows of the loss alone. */
  readonly behind: boolean;
}

/** q, k, v share their input; gate and up share theirs; an encoder's mlp has no gate. */
export function groupsOf({ c, f, heads, keyValueHeads, d, encoder = false }: Sizes): Group[] {
  const keyWidth = keyValueHeads * d;
  return [
    { input: c, outputs: [heads * d, keyWidth, keyWidth], behind: false },
    { input: heads * d, outputs: [c], behind: true },
    { input: c, outputs: encoder ? [f] : [f, f], behind: true },
    { input: f, outputs: [c], behind: true },
  ];
}

/** Useful operations a step; a multiply and an add are two. */
export function usefulFlops(step: StepShape): number {
  const { sizes, method, rank, rows, supervised, accumulation } = step;
  let [base, pairs] = [0, 0]; // parameters, each as often as a row meets it
  for (const { input, outputs, behind } of groupsOf(sizes)) {
    const all = behind ? rows * (sizes.layers - 1) + supervised : rows * sizes.layers;
    for (const output of outputs) {
      base += all * input * output;
      pairs += all * rank * (input + output);
    }
  }
  const forward = 2 * base;
  const lowRank = 2 * pairs;
  const first = groupsOf(sizes)[0] as Group;
  const noGradient = 2 * rows * first.input * outputWidth(first); // below the first adapter
  const student = 2 * forward + 3 * lowRank - noGradient;
  const head = 2 * supervised * sizes.v * sizes.c;
  const teacher = method === 'balora' ? forward + head : 0;
  return accumulation * (student + 2 * head + teacher) + attentionFlops(step);
}

/** Of these, the attention's: scores and values once forward and twice backward, and once by the teacher. */
export function attentionFlops({ sizes, method, squaredLengths, accumulation }: StepShape): number {
  const seen = sizes.encoder ? 4 : 2; // causal: half of the T x T scores
  const forward = seen * squaredLengths * sizes.heads * sizes.d * sizes.layers;
  return accumulation * (method === 'balora' ? 4 : 3) * forward;
}

function outputWidth({ outputs }: Group): number {
  return outputs.reduce((width, output) => width + output, 0);
}

/** Bytes of f32 logits, student's and teacher's, that a chunk of the head may take. */
const kChunkBytes = 100 << 20;

/**
 * The matrix products of a step, each as large as it can be: groups as one product, a low-rank part as more of the inner
 * dimension. Attention is left out, since its products have no packed form.
 */
export function stepProducts(step: StepShape): Product[] {
  const { sizes, method, rows: all, supervised, accumulation } = step;
  const products: Product[] = [];
  const { layers, v, c } = sizes;
  groupsOf(sizes).forEach((group, index) => {
    const first = index === 0 ? accumulation : 0; // below it there is no adapter
    const full = accumulation * (group.behind ? layers - 1 : layers);
    products.push(...groupProducts(group, step, { rows: all, count: full, withoutDx: first }));
    if (!group.behind) return;
    const last = { rows: supervised, count: accumulation, withoutDx: 0 };
    products.push(...groupProducts(group, step, last));
  });
  const models = method === 'balora' ? 2 : 1;
  const fitting = Math.max(1, Math.floor(kChunkBytes / (4 * v * models)));
  const parts = Math.ceil(supervised / fitting);
  const rows = parts > 0 ? Math.min(supervised, Math.ceil(supervised / parts / 32) * 32) : 0;
  const chunks = rows > 0 ? (accumulation * supervised) / rows : 0;
  const logits = models * chunks;
  products.push(
    { m: rows, k: c, n: v, count: logits, packed: true },
    { m: rows, k: v, n: c, count: chunks, packed: true }, // dh
  );
  return products.filter(({ m, k, count }) => m > 0 && k > 0 && count > 0);
}

/** A group's products in all layers where it sees so many rows; `count` of them, `withoutDx` of these without dx. */
function groupProducts(
  group: Group,
  { method, rank }: StepShape,
  { rows: m, count, withoutDx }: { rows: number; count: number; withoutDx: number },
): Product[] {
  const { input, outputs } = group;
  const width = outputWidth(group);
  const columns = rank * outputs.length;
  const packed = (k: number, n: number, times = count): Product => {
    return { m, k, n, count: times, packed: true };
  };
  const plain = (rows: number, n: number): Product => {
    return { m: rows, k: m, n, count, packed: false };
  };
  return [
    ...(method === 'balora' ? [packed(input, width)] : []), // teacher
    packed(input, columns), // u = x a^T
    packed(input + columns, width), // student
    ...outputs.flatMap((output) => [packed(output, rank), plain(output, rank)]), // du = dy b, db = dy^T u
    plain(columns, input), // da = du^T x
    packed(width + columns, input, count - withoutDx), // dx
  ];
}

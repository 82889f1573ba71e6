/**
 * Floating point operations that a step must compute, counted from its shapes: the products of the algorithm itself, without
 * recomputation, padding or work below the first adapter. After the attention of the last layer only the rows of the loss count.
 * Terms below one percent (norms, softmax, the small products of the SVD term) are left out.
 */
import type { Sizes } from './shapes.ts';

/** One product (m,k) x (k,n), `count` times a step. */
export interface Product {
  readonly m: number;
  readonly k: number;
  readonly n: number;
  readonly count: number;
  /** Whether the second factor is a frozen weight, which kernels keep packed; the others are products of two activations. */
  readonly packed: boolean;
}

export interface StepShape {
  readonly sizes: Sizes;
  readonly method: 'balora' | 'lora';
  readonly rank: number;
  /** Rows of a micro-batch that the layers compute: its tokens, where a beginning that several segments share counts once. */
  readonly rows: number;
  /** Rows of a micro-batch that the loss reads. */
  readonly supervised: number;
  /** Sum of the squared lengths of a micro-batch's segments. */
  readonly squaredLengths: number;
  /** Micro-batches per step. */
  readonly accumulation: number;
}

/** Linears of a layer that share their input: its size, and the size of each output. */
interface Group {
  readonly input: number;
  readonly outputs: readonly number[];
  /** Whether it comes after the attention: in the last layer it then computes only the rows of the loss. */
  readonly behind: boolean;
}

/** The groups of a layer: q, k, v share their input, and so do gate and up; the mlp of an encoder has no gate. */
export function groupsOf({ c, f, heads, keyValueHeads, d, encoder = false }: Sizes): Group[] {
  const keyWidth = keyValueHeads * d;
  return [
    { input: c, outputs: [heads * d, keyWidth, keyWidth], behind: false },
    { input: heads * d, outputs: [c], behind: true },
    { input: c, outputs: encoder ? [f] : [f, f], behind: true },
    { input: f, outputs: [c], behind: true },
  ];
}

/** Useful operations per step; a multiply and an add count as two. */
export function usefulFlops(step: StepShape): number {
  const { sizes, method, rank, rows, supervised, accumulation } = step;
  let [base, pairs] = [0, 0]; // parameters, each times the rows that it is multiplied with
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

/** The part of {@link usefulFlops} in attention: scores and values, once forward, twice backward and once by the teacher. */
export function attentionFlops({ sizes, method, squaredLengths, accumulation }: StepShape): number {
  const seen = sizes.encoder ? 4 : 2; // causal: half of the T x T scores
  const forward = seen * squaredLengths * sizes.heads * sizes.d * sizes.layers;
  return accumulation * (method === 'balora' ? 4 : 3) * forward;
}

function outputWidth({ outputs }: Group): number {
  return outputs.reduce((width, output) => width + output, 0);
}

/** Largest size of the f32 logits of a chunk of the head, student's and teacher's, in bytes. */
const kChunkBytes = 100 << 20;

/**
 * The matrix products of a step, each as large as possible: a group is one product, and a low-rank part extends its inner
 * dimension. Attention is left out, since its products have no packed form.
 */
export function stepProducts(step: StepShape): Product[] {
  const { sizes, method, rows: all, supervised, accumulation } = step;
  const products: Product[] = [];
  const { layers, v, c } = sizes;
  groupsOf(sizes).forEach((group, index) => {
    const first = index === 0 ? accumulation : 0; // no adapter lies below it, so it needs no dx
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

/** The products of a group with so many rows: in `count` layers and micro-batches, of which `withoutDx` need no dx. */
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

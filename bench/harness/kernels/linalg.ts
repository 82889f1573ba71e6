/**
 * Kernel rows of decompositions. Operations are those of the textbook's dense algorithms (Golub and Van Loan, Matrix
 * Computations), whatever the kernel does; they run in f64 and are held against the f32 peak.
 */
import {
  eigh,
  gram,
  gramSpectrum,
  type PcaState,
  pcaUpdates,
  qr,
  randomizedSvd,
  svd,
  trailingSvds,
} from '../../../lib/ops/index.ts';
import { noGrad, type Tensor } from '../../../lib/tensor.ts';
import {
  frozen,
  gradient,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  own,
  plain,
} from './kit.ts';

/** Largest number of columns: wider matrices would take minutes without showing more. */
const kMostColumns = 576;

interface Decomposition {
  /** Whether it decomposes the Gram matrix (n,n) of the keys' weight instead of the weight (m,n). */
  readonly symmetric?: boolean;
  readonly forward: (m: number, n: number) => number;
  readonly backward: (m: number, n: number) => number;
  readonly body: (a: Tensor) => readonly Tensor[];
}

function decomposition(
  name: string,
  { symmetric = false, body, ...flops }: Decomposition,
): MicroTable {
  const make = ({ sizes }: MicroContext, back: boolean): MicroCase => {
    const n = Math.min(sizes.keyValueHeads * sizes.d, kMostColumns);
    const m = symmetric ? n : sizes.c;
    const w = normal([sizes.c, n], 'f32');
    const a = symmetric ? own(noGrad(() => gram(w).to('f32'))) : w;
    const shapes = `a ${m}x${n}`;
    const forward = () => body(a);
    if (!back) return plain(shapes, 'flop', flops.forward(m, n), forward);
    return gradient(shapes, 'flop', flops.backward(m, n), { leaves: [a], forward });
  };
  return [
    { name: `micro-${name}`, kernel: name, peak: 'f32', make: (context) => make(context, false) },
    {
      name: `micro-${name}-backward`,
      kernel: `${name}_backward`,
      peak: 'f32',
      make: (context) => make(context, true),
    },
  ];
}

/** Singular values of logits H W^T from both Gram matrices: Cholesky factor, congruence, eigenvalues without vectors. */
function spectrumCase({ sizes, lossRows }: MicroContext): MicroCase {
  const c = Math.min(sizes.c, kMostColumns);
  const products = (rows: number): Tensor => own(noGrad(() => gram(normal([rows, c], 'f32'))));
  const [m, g] = [products(lossRows), products(2 * c)];
  const work = c ** 3 * (1 / 3 + 3 + 4 / 3);
  return plain(`two ${c}x${c}`, 'flop', work, () => gramSpectrum(m, g));
}

export const kMicroLinalg: MicroTable = [
  {
    name: 'micro-gram',
    kernel: 'gram',
    peak: 'f32',
    make: ({ sizes: { c, v }, dtype }) => {
      const head = frozen([v, c], dtype);
      return plain(`w^T w, w ${v}x${c}, f64 sums`, 'flop', 2 * v * c * c, () => gram(head));
    },
  },
  {
    name: 'micro-randomized-svd',
    kernel: 'randomized_svds',
    op: 'randomized_svd',
    peak: 'f32',
    make: ({ sizes: { c, f }, rank }) => {
      const w = normal([f, c], 'f32');
      const niter = 4;
      const work = 2 * f * c * (rank + 10) * (2 * niter + 2);
      const shapes = `w ${f}x${c}, r ${rank}, niter ${niter}`;
      return plain(shapes, 'flop', work, () => randomizedSvd(w, rank, { niter }));
    },
  },
  {
    name: 'micro-trailing-svds',
    kernel: 'trailing_svds',
    peak: 'f32',
    make: ({ sizes: { c, f }, rank }) => {
      const a = normal([f, c], 'f32');
      // The Gram matrix, a factor's inverse and its Gram matrix, and ten products with 2 r columns.
      const work = f * c ** 2 + 2 * c ** 3 + 10 * 2 * c ** 2 * 2 * rank;
      return plain(`w ${f}x${c}, r ${rank}`, 'flop', work, () => trailingSvds([{ a, rank }]));
    },
  },
  {
    name: 'micro-pca-updates',
    kernel: 'pca_updates',
    peak: 'f32',
    make: ({ sizes: { c, f }, rank }) => {
      const x = normal([f, c], 'f32');
      const [state] = noGrad(() => pcaUpdates([{ x, rank }])) as [PcaState];
      for (const tensor of Object.values(state)) own(tensor);
      const before = { ...state, count: f };
      // Three products with A^T A of the rank and as many columns again.
      const work = 3 * 4 * f * c * 2 * rank;
      const shapes = `x ${f}x${c}, r ${rank}`;
      return plain(shapes, 'flop', work, () =>
        pcaUpdates([{ x, rank, before }]).flatMap((found) => Object.values(found)),
      );
    },
  },
  ...decomposition('qr', {
    forward: (m, n) => 4 * m * n ** 2 - (4 / 3) * n ** 3, // R, and Q as a matrix
    backward: (m, n) => 5 * m * n ** 2 + n ** 3, // two products, one with a triangle, a solve
    body: (a) => Object.values(qr(a)),
  }),
  ...decomposition('eigh', {
    symmetric: true,
    forward: (_, n) => 9 * n ** 3,
    backward: (_, n) => 6 * n ** 3, // three products
    body: (a) => Object.values(eigh(a)),
  }),
  ...decomposition('svd', {
    forward: (m, n) => 14 * m * n ** 2 + 8 * n ** 3,
    backward: (m, n) => 6 * m * n ** 2 + 2 * n ** 3, // U^T dU, V^T dV, U by a core, by V^T
    body: (a) => Object.values(svd(a)),
  }),
  { name: 'micro-gram-spectrum', kernel: 'gram_spectrum', peak: 'f32', make: spectrumCase },
];

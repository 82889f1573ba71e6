/**
 * HRA (Yuan et al. 2024): W' = W H_0 H_1 ... H_(r-1) with Householder reflections H_i = I - 2 u_i u_i^T / |u_i|^2. With these vectors in
 * the columns of U (in,r), the product is I + U T U^T, where T is upper triangular and
 *
 *     -T^-1 = half of the diagonal of U^T U + its part above the diagonal
 *
 * (the compact WY form; Joffrain et al. 2006), so the update is a pair, a = U^T and b = W U T, and no in x in matrix is formed. The
 * vectors start in equal pairs, whose reflections cancel. With applyGs the vectors are orthogonalised first (Gram-Schmidt) and
 * T = -2 I.
 */
import {
  add,
  contiguous,
  div,
  expand,
  matmul,
  mul,
  qr,
  rand,
  reshape,
  sum,
  transpose,
} from '../../ops/index.ts';
import { type Tensor, tensor } from '../../tensor.ts';
import { defineMethod, trainedTensor } from './method.ts';
import { type FormModule, lowRankVariant, withWeight } from './own_form.ts';

const kVectors = 'hra_u';

/** T (r,r) of the product of the reflections by the columns of U, computed in f64. */
function triangle(u: Tensor, { r, constant }: FormModule): Tensor {
  const make = (entry: (row: number, column: number) => number): Tensor => {
    const values = Float64Array.from({ length: r * r }, (_, at) =>
      entry(Math.floor(at / r), at % r),
    );
    return tensor(values, { shape: [r, r], device: u.device });
  };
  const identity = constant(`identity ${r}`, () => make((i, j) => (i === j ? 1 : 0)));
  const above = constant(`above ${r}`, () => make((i, j) => (i < j ? -2 : 0)));
  const exact = u.to('f64');
  const products = matmul(exact, exact, { transposeA: true });
  const squares = sum(mul(products, identity), { axis: 0, keepDims: true }); // |u_j|^2 (1,r)
  // -T = 2 (I - X)^-1 D^-1 with D = diag |u|^2. X is nilpotent: (I - X)^-1 = (I + X) (I + X^2) (I + X^4) ... up to X^(r-1).
  let power = div(mul(products, above), reshape(squares, [r, 1]));
  let inverse = add(identity, power);
  for (let reached = 2; reached < r; reached *= 2) {
    power = matmul(power, power);
    inverse = matmul(inverse, add(identity, power));
  }
  return mul(div(inverse, squares), -2).to(u.dtype);
}

const variant = lowRankVariant({
  peftType: 'HRA',
  inPeft: true,
  formula:
    'W H_0 ... H_(r-1) x, where H_i = I - 2 u_i u_i^T / |u_i|^2 reflects by the trained vector u_i',
  keys: {
    apply_GS: { option: 'applyGs' },
    bias: { only: 'none' },
    exclude_modules: { option: 'excludeModules' },
    init_weights: { idle: true },
  },
  tensors: () => [trainedTensor(kVectors, ({ inFeatures, r }) => [inFeatures, r])],
  start: (modules) =>
    modules.map((module) => {
      const { inFeatures, r } = module;
      const bound = 1 / Math.sqrt(r / 2);
      const half = rand([inFeatures, r / 2, 1], {
        low: -bound,
        high: bound,
        seed: module.seed('u'),
      });
      return {
        [kVectors]: reshape(contiguous(expand(half, [inFeatures, r / 2, 2])), [inFeatures, r]),
      };
    }),
  refuses: ({ inFeatures, r }) =>
    r <= inFeatures
      ? null
      : `r=${r} must be at most the number of inputs, ${inFeatures}; set r to that`,
  refusesStart: ({ r }, { applyGs }) => {
    if (applyGs === true) {
      return 'applyGs true has no start that leaves the base as it is (r orthogonal reflections are not the identity); leave applyGs out';
    }
    return r % 2 === 0
      ? null
      : `r=${r} must be even, so that the reflections start in pairs that cancel; set r to ${r + 1}`;
  },
  // The terms of equal pairs are large and cancel.
  pairIsChange: false,
  factors: (module) => {
    const { weight, settings } = module;
    const u = module.tensor(kVectors);
    const isOrthogonal = settings.applyGs === true;
    const vectors = isOrthogonal ? qr(u).q : u;
    // W U (out,r)
    const product = withWeight(weight, vectors, {
      product: (w, v) => matmul(w, v),
      adjoint: (w, dy) => matmul(w, dy, { transposeA: true }),
    });
    const b = isOrthogonal ? mul(product, -2) : matmul(product, triangle(u, module));
    return { a: contiguous(transpose(vectors)), b };
  },
});

export const hra = defineMethod({
  name: 'hra',
  title: 'HRA: the inputs of each weight are reflected by r trained vectors',
  about:
    "The weight's rows are turned and never stretched: the input is reflected by r vectors. Take it where the geometry of what " +
    'the base has learnt is to stay. r is even, since the vectors start in pairs that cancel. It costs a product of the weight ' +
    'with r vectors for each micro-batch, and no matrix of the size of the weight.',
  differs:
    'with `apply_GS`, and with an odd r, it does not start as the base (with `apply_GS` the logits of a small model change by ' +
    '9.8). Here both are refused for a fresh adapter and can be loaded',
  source: 'arXiv 2405.17484',
  since: '0.2.0',
  adapter: { peftType: 'HRA', r: 8 },
  options: {
    /** Whether HRA's vectors are orthogonalised (Gram-Schmidt); only for adapters from a file, since none starts as the base. Default false. */
    applyGs: { help: 'orthogonalise the vectors; for an adapter from a file' },
  },
  variants: [variant],
});

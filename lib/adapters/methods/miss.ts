/**
 * MiSS (Kang and Yin 2024, first named Bone): all groups of r inputs share one matrix. W' = W + block^T A, where A (r,in) has a 1 at
 * (j mod r, j) and block (r,out) starts as 0. In the form "mini", block (r, miniR) is repeated along the outputs. The form "bat" has a
 * matrix b (r,r) for each group of r outputs and changes each r x r part w of their rows to w + w b + b.
 */
import { add, contiguous, expand, matmul, reshape, transpose, zeros } from '../../ops/index.ts';
import { choice, whole } from '../../options/kinds.ts';
import { type Tensor, tensor } from '../../tensor.ts';
import { masterDType } from '../low_rank.ts';
import {
  defineMethod,
  type ModuleSizes,
  type Settings,
  trainedTensor,
  type Variant,
  type VariantModule,
} from './method.ts';
import { denseVariant, type FormModule, lowRankVariant, withWeight } from './own_form.ts';

const kBlock = 'miss_block';

const formOf = ({ missForm }: Settings): string => missForm as string;
const miniOf = ({ miniR }: Settings): number => miniR as number;

function blockShape({ outFeatures, r }: ModuleSizes, settings: Settings): number[] {
  const shapes: Record<string, number[]> = {
    miss: [r, outFeatures],
    mini: [r, miniOf(settings)],
    bat: [outFeatures / r, r, r],
  };
  return shapes[formOf(settings)] as number[];
}

function refuses({ inFeatures, outFeatures, r }: ModuleSizes, settings: Settings): string | null {
  const miniR = miniOf(settings);
  switch (formOf(settings)) {
    case 'bat':
      if (inFeatures % r === 0 && outFeatures % r === 0) return null;
      return `r=${r} must divide both sizes of the matrix (out,in)=(${outFeatures},${inFeatures}) for missForm "bat"; set another r`;
    case 'mini':
      if (outFeatures % miniR === 0) break;
      return `miniR=${miniR} must divide the outputs, ${outFeatures}; set another miniR`;
    default:
      if (miniR === 1) break;
      return `miniR=${miniR} needs missForm "mini"; set it, or leave miniR out`;
  }
  if (r <= inFeatures) return null;
  return `r=${r} must be at most the number of inputs, ${inFeatures}; set r to that`;
}

/** A (r,in), with a 1 at (j mod r, j). */
function sumsOfGroups({ inFeatures, r, weight, constant }: FormModule): Tensor {
  return constant(`sums ${r} ${inFeatures}`, () => {
    const values = new Float32Array(r * inFeatures);
    for (let j = 0; j < inFeatures; j++) values[(j % r) * inFeatures + j] = 1;
    const { device } = weight;
    return tensor(values, { shape: [r, inFeatures], device }).to(masterDType(weight.dtype));
  });
}

const form = {
  peftType: 'MISS',
  inPeft: true,
  formula:
    'W x + block^T A x, where A sums the inputs j of equal j mod r; missForm bat: (W + W b + b) x by r x r parts of W',
  keys: {
    bias: { only: 'none' },
    exclude_modules: { option: 'excludeModules' },
    init_weights: {
      option: 'missForm',
      toFile: (missForm: string) => (missForm === 'miss' ? true : missForm),
      fromFile: (value: unknown) => (typeof value === 'boolean' ? 'miss' : value),
    },
    mini_r: { option: 'miniR' },
    miss_dropout: { option: 'loraDropout' },
  },
  tensors: (settings: Settings) => [trainedTensor(kBlock, (sizes) => blockShape(sizes, settings))],
  start: (modules: readonly ModuleSizes[], settings: Settings) =>
    modules.map((sizes) => ({ [kBlock]: zeros(blockShape(sizes, settings)) })),
  refuses,
} as const;

const shared = lowRankVariant({
  ...form,
  factors: (module) => {
    const { outFeatures, r, settings } = module;
    const rows = transpose(module.tensor(kBlock)); // (out or miniR, r)
    const copies = outFeatures / (rows.shape[0] as number);
    const all = formOf(settings) === 'mini' ? expand(rows, [copies, miniOf(settings), r]) : rows;
    return { a: sumsOfGroups(module), b: reshape(contiguous(all), [outFeatures, r]) };
  },
});

const bat = denseVariant({
  ...form,
  change: ({ inFeatures, outFeatures, r, weight, tensor: own }) => {
    const [rows, columns] = [outFeatures / r, inFeatures / r];
    const block = own(kBlock);
    const parts = (w: Tensor): Tensor => reshape(w, [rows, r * columns, r]); // their rows
    const products = withWeight(weight, block, {
      product: (w, b) => matmul(parts(w), b),
      adjoint: (w, dy) => matmul(parts(w), dy, { transposeA: true }),
    });
    const change = add(reshape(products, [rows, r, columns, r]), reshape(block, [rows, r, 1, r]));
    return reshape(change, [outFeatures, inFeatures]);
  },
});

const of = ({ settings }: VariantModule): Variant => (formOf(settings) === 'bat' ? bat : shared);

const variant: Variant = {
  ...shared,
  type: {
    ...shared.type,
    loraObstacle: (settings) =>
      formOf(settings) === 'bat' ? bat.type.loraObstacle(settings) : null,
  },
  update: (module, plain) => of(module).update(module, plain),
  mergedWeight: (module, base) => of(module).mergedWeight(module, base),
  toLora: (module) => of(module).toLora(module),
};

export const miss = defineMethod({
  name: 'miss',
  title: 'MiSS (Bone): one trained matrix that all groups of r inputs of a module share',
  about:
    'The inputs are added up in groups, and one matrix of r rows is trained for all groups. Take it where A is not worth its ' +
    'memory: none is trained. `missForm` chooses `mini`, a block of `miniR` columns that is repeated along the outputs, or ' +
    "`bat`, which multiplies each r x r part of the weight and costs another product of the size of the base's and memory for " +
    'the change of each weight; no plain LoRA equals it.',
  source: 'arXiv 2409.15371',
  since: '0.2.0',
  adapter: { peftType: 'MISS', r: 64 },
  options: {
    /** Form of MiSS: `miss`, `bat` (a matrix for each r outputs, multiplied by the weight), or `mini` (see `miniR`). Default `miss`. */
    missForm: choice({
      choices: ['miss', 'bat', 'mini'],
      default: 'miss',
      help: 'form of the block',
    }),
    /** For MiSS in the form `mini`: columns of its block, which is repeated along the outputs. Default 1. */
    miniR: whole({ least: 1, default: 1, help: 'columns of the block of the form mini' }),
  },
  variants: [variant],
});

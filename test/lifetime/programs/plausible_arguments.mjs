// Valid arguments for each op of the addon: matching shapes of odd and empty sizes, every dtype, strided views, indices that are
// mostly in range. any_calls.mjs replaces some of them by wrong values.
import { kCacheBlock, kCacheChannels } from '../../../dist/ops/kv_cache.js';

const kSizes = [0, 1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65, 100];
const kWrongIndices = [-1, 5, 1000, 2 ** 31 - 1, -(2 ** 31)];

const kUnary = ['abs', 'exp', 'log', 'neg', 'sqrt', 'rsqrt', 'sin', 'cos', 'tanh', 'sigmoid', 'gelu', 'silu'];
const kBinary = ['add', 'sub', 'mul', 'div', 'pow', 'maximum', 'minimum'];
const kComparisons = ['equal', 'not_equal', 'less', 'less_equal', 'greater', 'greater_equal'];
const kReductions = ['none', 'mean', 'sum'];
const kNorms = ['frobenius', 'nuclear'];

export const kNames = [...kUnary, ...kBinary, ...kComparisons, ...kReductions, ...kNorms, 'of no op'];

/**
 * @param native the addon
 * @param random the functions pick, chance and below of one random sequence
 * @param device the device of the tensors
 * @param keep called with each handle that is created
 * @returns for each name of an op a function that creates its arguments
 */
export function plausibleArguments(native, { pick, chance, below }, device, keep) {
  const size = () => pick(kSizes);
  const positive = () => Math.max(1, size());
  const float = () => pick(['f32', 'bf16', 'f16', 'f64']);
  const maybe = (make) => (chance(0.5) ? make() : null);
  const list = (count, make) => Array.from({ length: count }, (_, i) => make(i));
  const kept = (handle) => {
    keep(handle);
    return handle;
  };
  const normal = (dtype, shape) => kept(native.randomNormal(shape, 0, 1, below(1e6), 0, dtype));
  const constant = (dtype, shape, value) => kept(native.full(shape, value, dtype));

  /** A tensor that is dense, transposed in memory, or rows of a larger one, and that requires a gradient, is frozen, or neither. */
  function tensor(dtype, ...shape) {
    let handle;
    if (shape.length === 2 && chance(0.15)) {
      handle = kept(native.permute(normal(dtype, shape.toReversed()), [1, 0]));
    } else if (shape.length > 0 && chance(0.1)) {
      const [rows, ...rest] = shape;
      handle = kept(native.slice(normal(dtype, [rows + 3, ...rest]), 0, 2, 2 + rows, 1));
    } else {
      handle = normal(dtype, shape);
    }
    if (chance(0.05)) handle = kept(native.affine(handle, pick([Number.NaN, 1e38, 0]), 0));
    const role = below(10);
    if (role < 3) native.setRequiresGrad(handle, true);
    if (role > 6) native.freeze(handle);
    return handle;
  }
  function indices(values) {
    const words = Int32Array.from(values, (value) => (chance(0.02) ? pick(kWrongIndices) : value));
    return kept(native.fromBytes(new Uint8Array(words.buffer), [words.length], 'i32'));
  }
  const indicesBelow = (limit, count) => indices(list(count, () => below(limit)));
  const targets = (count, vocabulary) =>
    indices(list(count, () => (chance(0.2) ? -100 : below(vocabulary))));

  /** The boundaries of `count` segments, from 0 on; with `ends`, of segments no longer than those. */
  function segments(count, ends) {
    const found = [0];
    for (let b = 0; b < count; ++b) {
      found.push(found[b] + (ends ? below(ends[b + 1] - ends[b] + 1) : size()));
    }
    return found;
  }
  const lengthsIn = (ends) => indices(ends.slice(1).map((end, b) => below(end - ends[b] + 1)));

  function linearGroup() {
    const dtype = float();
    const ends = device === 'cpu' && chance(0.3) ? segments(1 + below(4)) : null;
    const [rows, inputs] = [ends ? ends.at(-1) : size(), size()];
    const groups = ends ? [ends.length - 1] : [];
    const outputs = list(1 + below(3), size);
    const factors = dtype === 'f64' ? 'f64' : 'f32';
    return [
      tensor(dtype, rows, inputs),
      maybe(() => tensor(dtype, rows, inputs)),
      ends && indices(ends),
      outputs.map((output) => ({
        weight: tensor(dtype, ...groups, output, inputs),
        bias: maybe(() => tensor(dtype, ...groups, output)),
        outputScale: ends ? null : maybe(() => tensor(factors, output)),
        weightChange: maybe(() => tensor(dtype, ...groups, output, inputs)),
        lowRank: list(below(3), () => lowRankPart(factors, inputs, output, groups)),
      })),
    ];
  }

  function lowRankPart(dtype, inputs, outputs, groups = []) {
    const rank = pick([1, 3, 4, 8, 16, 17]);
    const pair = (make) => ({
      a: make(dtype, ...groups, rank, inputs),
      b: make(dtype, ...groups, outputs, rank),
    });
    const start = maybe(() => pair((type, ...shape) => normal(type, shape))); // it wants no gradient
    const form = start ? 'sinceStart' : pick(['exact', 'change']);
    return { ...pair(tensor), start, scale: pick([1, -1, 2]), form };
  }

  function attention() {
    const dtype = float();
    const count = below(5);
    const keys = segments(count);
    const queries = chance(0.4) ? segments(count, keys) : null;
    const heads = 1 + below(3);
    const width = pick([1, 8, 16, 32, 64, 80, 128]);
    const rows = keys[count];
    const all = heads * (1 + below(3));
    return [
      tensor(dtype, queries ? queries[count] : rows, all, width),
      tensor(dtype, rows, heads, width),
      tensor(dtype, rows, heads, width),
      maybe(() => normal(dtype === 'f64' ? 'f64' : 'f32', [all])),
      {
        cuSeqlens: indices(keys),
        cuQueries: queries && indices(queries),
        lengths: maybe(() => lengthsIn(keys)),
      },
      {
        scale: pick([1, 0.125, 0, -1]),
        softcap: pick([0, 0, 50]),
        window: pick([0, 0, 1, 3, 64]),
        causal: chance(0.7),
      },
    ];
  }

  function relativeAttention() {
    const dtype = float();
    const count = below(4);
    const queries = segments(count);
    const keys = chance(0.5) ? queries : segments(count);
    const heads = 1 + below(5);
    const width = pick([4, 16, 64]);
    const buckets = positive();
    const distances = 2 * pick([100, 3]) + 1; // the larger number covers every pair of positions
    const table = () => maybe(() => tensor(dtype, buckets, heads, width));
    const tables = [table(), table()];
    const bias = maybe(() => tensor(dtype === 'f64' ? 'f64' : 'f32', distances, heads));
    const index = tables.some(Boolean) ? indicesBelow(buckets, distances) : null;
    const operands = {
      q: tensor(dtype, queries[count], heads, width),
      k: tensor(dtype, keys[count], heads, width),
      v: tensor(dtype, keys[count], heads, width),
      cuQueries: indices(queries),
      cuKeys: indices(keys),
      queryLengths: maybe(() => lengthsIn(queries)),
      keyLengths: maybe(() => lengthsIn(keys)),
      bias,
      positionKeys: tables[0],
      positionQueries: tables[1],
      index,
    };
    return [operands, 0.2, chance(0.5)];
  }

  /** A cache of keys and values with some sequences, and the number of rows that a call adds to them. */
  function kvCache(dtype, heads, width) {
    const [count, layers] = [below(4), 1 + below(2)];
    const lengths = list(count, () => below(100));
    const bounds = [0];
    for (const length of lengths) bounds.push(bounds.at(-1) + below(Math.min(length, 5) + 1));
    const [blocks, columns] = [positive(), 1 + below(4)];
    const channels = kCacheChannels * Math.ceil(width / kCacheChannels);
    const chunk = () => normal(dtype, [blocks, layers, 2, heads, kCacheBlock, channels]);
    const chunks = list(1 + below(2), chunk);
    const tables = native.reshape(indicesBelow(chunks.length * blocks, count * columns), [count, columns]);
    const cache = {
      ...{ chunks, layer: below(layers), cuRows: indices(bounds), lengths: indices(lengths) },
      ...{ tables: kept(tables), firstBlocks: maybe(() => indicesBelow(2, count)) },
    };
    return { cache, rows: bounds.at(-1) };
  }

  function cacheAppend() {
    const [dtype, heads, width] = [float(), 1 + below(3), pick([1, 8, 31, 32, 40])];
    const { cache, rows } = kvCache(dtype, heads, width);
    return [normal(dtype, [rows, heads, width]), normal(dtype, [rows, heads, width]), cache];
  }

  function cachedAttention() {
    const [dtype, heads, width] = [float(), 1 + below(3), pick([1, 8, 31, 32, 40])];
    const { cache, rows } = kvCache(dtype, heads, width);
    const queries = heads * (1 + below(6));
    const causal = chance(0.7);
    return [
      normal(dtype, [rows, queries, width]),
      cache,
      causal ? maybe(() => normal(dtype, [pick([100, 3]), queries])) : null,
      maybe(() => normal(dtype === 'f64' ? 'f64' : 'f32', [queries])),
      { scale: pick([1, 0.125]), softcap: pick([0, 0, 50]), window: pick([0, 0, 1, 40]), causal },
    ];
  }

  /** The first arguments of the ops on the rows of the head, and their sizes. */
  function head() {
    const dtype = float();
    const [rows, width, vocabulary] = [size(), size(), size()];
    const hidden = () => tensor(dtype, rows, width);
    const weight = () => tensor(dtype, vocabulary, width);
    return { dtype, rows, width, vocabulary, hidden, weight };
  }
  const topKs = () => pick([0, 1, 5, 1000]);
  const chunkBytes = () => pick([0, 1000]);
  const softcap = () => pick([0, 0, 30]);
  /** A teacher by its hidden states, by its summary, or none. */
  function teacher(of) {
    const none = { hidden: null, head: null, mean: null, entropy: null, logProbability: null };
    const kind = below(3);
    if (kind === 0) return none;
    if (kind === 1) {
      return { ...none, hidden: of.hidden(), head: chance(0.2) ? of.weight() : null };
    }
    const mean = tensor(of.dtype === 'f64' ? 'f64' : 'f32', of.rows, of.width);
    return { ...none, mean, entropy: tensor('f64', of.rows) };
  }
  function headArguments() {
    const of = head();
    const masks = {
      targets: maybe(() => targets(of.rows, of.vocabulary)),
      regularized: maybe(() => constant('u8', [of.rows], 1)),
      scales: null,
      factors: maybe(() => tensor('f64', of.rows)),
    };
    const inputs = { hidden: of.hidden(), head: of.weight(), teacher: teacher(of), ...masks };
    return [inputs, { ...headOptions(), softcap: softcap() }];
  }
  function headOptions() {
    const scales = { taskScale: 1, consistencyScale: 0.5, diversityScale: 0.1 };
    const temperatures = { temperature: pick([1, 2]), entropyTemperature: 1 };
    const caps = { softcap: 0, logitScale: pick([1, 1, 0.5]) };
    return { ...scales, ...temperatures, ...caps, entropyTopK: topKs(), chunkBytes: chunkBytes() };
  }

  /** A tensor that an optimiser writes: dense, and without a gradient. */
  const state = (...shape) => normal('f32', shape);

  /** The parts of a matrix in blocks, as the files of bitsandbytes have them. */
  function fourBitWeight() {
    const [rows, columns] = [size(), size()];
    const [blockSize, nestedBlockSize] = [pick([2, 64]), pick([1, 256])];
    const blocks = Math.ceil((rows * columns) / blockSize);
    const isNested = chance(0.5);
    const parts = {
      ...{ type: pick(['NF4', 'FP4']), code: list(16, (i) => i / 15), blockSize, nestedBlockSize, nestedOffset: 0.5 },
      packed: constant('u8', [Math.ceil((rows * columns) / 2)], below(256)),
      absmax: isNested ? constant('u8', [blocks], below(256)) : tensor('f32', blocks),
      nestedAbsmax: isNested ? tensor('f32', Math.ceil(blocks / nestedBlockSize)) : null,
      nestedMap: isNested ? tensor('f32', 256) : null,
    };
    return ['blocks', parts, [rows, columns], float(), chance(0.5)];
  }
  function int8Weight() {
    const [rows, columns] = [size(), size()];
    const codes = constant('u8', [rows * columns], below(256));
    return ['blocks', codes, tensor('f32', rows), [rows, columns], float(), chance(0.5)];
  }

  return {
    fourBitWeight,
    int8Weight,
    unary: () => [tensor(float(), size(), size()), pick(kUnary)],
    binary: () => {
      const [dtype, rows, columns] = [float(), size(), size()];
      const other = pick([[rows, columns], [columns], [1, columns], [rows, 1]]);
      return [tensor(dtype, rows, columns), tensor(dtype, ...other), pick(kBinary)];
    },
    compare: () => {
      const [dtype, rows, columns] = [float(), size(), size()];
      return [tensor(dtype, rows, columns), tensor(dtype, columns), pick(kComparisons)];
    },
    gated: () => {
      const [dtype, rows, columns] = [float(), size(), size()];
      const names = ['silu', 'gelu', 'gelu_tanh', 'relu'];
      return [tensor(dtype, rows, columns), tensor(dtype, rows, columns), pick(names)];
    },
    where: () => {
      const [dtype, rows, columns] = [float(), size(), size()];
      const condition = constant('u8', pick([[rows, columns], [columns]]), below(2));
      return [condition, tensor(dtype, rows, columns), tensor(dtype, rows, columns)];
    },
    columnScale: () => {
      const [dtype, columns] = [float(), size()];
      const scale = tensor(dtype === 'f64' ? 'f64' : 'f32', columns);
      return [tensor(dtype, size(), columns), scale, maybe(() => tensor(dtype, columns))];
    },
    rmsNorm: () => {
      const [dtype, columns] = [float(), size()];
      const weight = tensor(pick([dtype, 'f32']), columns);
      return [tensor(dtype, size(), columns), weight, 1e-5, below(2), chance(0.5)];
    },
    rmsNormAdd: () => {
      const [dtype, rows, columns] = [float(), size(), size()];
      const values = () => tensor(dtype, rows, columns);
      return [values(), values(), tensor(dtype, columns), 1e-5, below(2), chance(0.5)];
    },
    layerNorm: () => {
      const [dtype, columns] = [float(), size()];
      const parameter = () => maybe(() => tensor(dtype, columns));
      return [tensor(dtype, size(), columns), parameter(), parameter(), 1e-5];
    },
    rope: () => {
      const dtype = float();
      const [rows, width, positions] = [size(), pick([2, 4, 8, 16, 64]), positive()];
      const turned = pick([width, width / 2, 2]);
      const table = () => tensor(dtype === 'f64' ? 'f64' : 'f32', positions, turned / 2);
      return [tensor(dtype, rows, positive(), width), table(), table(), indicesBelow(positions, rows)];
    },
    attention,
    relativeAttention,
    cacheAppend,
    cachedAttention,
    crossEntropy: () => {
      const [rows, vocabulary] = [size(), positive()];
      return [tensor(float(), rows, vocabulary), targets(rows, vocabulary), pick(kReductions)];
    },
    matmul: () => {
      const [dtype, m, n, k] = [float(), size(), size(), size()];
      const batch = pick([[], [2], [3, 2]]);
      const [transposeA, transposeB] = [chance(0.5), chance(0.5)];
      const a = tensor(dtype, ...batch, ...(transposeA ? [k, m] : [m, k]));
      const b = tensor(dtype, ...batch, ...(transposeB ? [n, k] : [k, n]));
      return [a, b, transposeA, transposeB];
    },
    linearGroup,
    rowNorm: () => {
      const [outputs, inputs] = [size(), size()];
      const parts = list(below(3), () => lowRankPart('f32', inputs, outputs));
      return [tensor(float(), outputs, inputs), parts];
    },
    embedding: () => {
      const rows = positive();
      return [tensor(float(), rows, size()), indicesBelow(rows, size())];
    },
    indexSelect: () => {
      const rows = positive();
      return [tensor(float(), rows, size()), indicesBelow(rows, size())];
    },
    gather: () => {
      const [rows, columns, chosen] = [positive(), size(), size()];
      const index = kept(native.reshape(indicesBelow(rows, chosen * columns), [chosen, columns]));
      return [tensor(float(), rows, columns), index, 0];
    },
    scatterAdd: () => {
      const [dtype, rows, columns, chosen] = [float(), positive(), size(), size()];
      const index = kept(native.reshape(indicesBelow(rows, chosen * columns), [chosen, columns]));
      return [tensor(dtype, rows, columns), index, tensor(dtype, chosen, columns), 0];
    },
    adamwSteps: () => {
      const shapes = list(1 + below(3), () => [size(), size()]);
      const states = () => shapes.map((shape) => state(...shape));
      const grads = shapes.map((shape) => tensor('f32', ...shape));
      const rates = shapes.map(() => constant('f64', [3], 0.1));
      const decays = shapes.map(() => 0.01);
      const coefficient = maybe(() => constant('f64', [], 1));
      const v = shapes.map((shape) => constant('f32', shape, 0.25));
      const parameters = { params: states(), grads, m: states(), v, rates, weightDecays: decays };
      return [parameters, coefficient, { beta1: 0.9, beta2: 0.99, eps: 1e-8 }];
    },
    sgdStep: () => {
      const shape = [size(), size()];
      const tensors = [state(...shape), tensor('f32', ...shape), maybe(() => state(...shape)), null];
      const [nesterov, first] = [chance(0.5), chance(0.5)];
      return [...tensors, { lr: 0.1, momentum: 0.9, dampening: 0, weightDecay: 0, nesterov, first }];
    },
    adafactorStep: () => {
      const [rows, columns] = [size(), size()];
      const values = () => state(rows, columns);
      const moments = { row: state(rows), column: state(columns), m: maybe(values) };
      const numbers = { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, clip: 1, weightDecay: 0 };
      return [values(), tensor('f32', rows, columns), moments, null, { ...numbers, scaleFloor: pick([-1, 0.1]) }];
    },
    scaleInPlace: () => [normal(float(), [size(), size()]), constant('f64', [], 0.5)],
    gradNorm: () => [
      list(pick([0, 1, 2, 5]), () => tensor(pick(['f32', 'f64']), size(), size())),
      pick(['1', '2', 'inf']),
    ],
    headLosses: () => [...headArguments(), false],
    headRows: headArguments,
    teacherSummary: () => {
      const of = head();
      const ids = maybe(() => targets(of.rows, of.vocabulary));
      return [of.hidden(), null, of.weight(), ids, headOptions()];
    },
    svdRatio: () => {
      const of = head();
      const norm = pick(kNorms);
      return [of.hidden(), of.weight(), pick([0, 1, 2, 10]), norm, softcap(), chunkBytes()];
    },
    gramAdd: () => {
      const columns = positive();
      return [constant('f64', [columns, columns], 0), normal(float(), [positive(), columns])];
    },
    scaledGramAdd: () => {
      const [columns, rows] = [positive(), positive()];
      const g = constant('f64', [columns, columns], 0);
      return [g, normal(float(), [rows, columns]), constant('f32', [rows], 0.5)];
    },
    gramSpectrum: () => {
      const columns = positive();
      const gram = () => kept(native.gram(normal('f32', [positive(), columns])));
      return [gram(), gram()];
    },
    svdRatioGram: () => {
      const of = head();
      const gram = kept(native.gram(of.weight()));
      return [of.hidden(), gram, pick([0, 1, 2, 10]), pick(kNorms)];
    },
    qr: () => [tensor(float(), positive(), size())],
    svd: () => [tensor(float(), size(), size())],
    singularValues: () => [tensor(float(), size(), size())],
    eigh: () => {
      const order = size();
      return [tensor(float(), order, order)];
    },
    randomizedSvds: () => {
      const matrices = list(1 + below(3), () => tensor(float(), positive(), positive()));
      const ranks = matrices.map(() => pick([1, 2, 4]));
      return [matrices, ranks, pick([0, 2, 4, -1]), pick([0, 5]), matrices.map(() => 3)];
    },
    pcaUpdates: () => {
      const rank = pick([1, 2]);
      const channels = positive();
      // It has no gradient, and refuses operands that want one.
      const rows = list(1 + below(3), () => normal(float(), [2 + below(9), channels]));
      const each = (make) => rows.map(make);
      const lists = [rows, each(() => rank), each(() => 3), each(() => pick([0, 1, 5]))];
      if (below(2) === 0) return [...lists, [], [], [], []];
      const known = (...shape) => each(() => normal('f32', shape));
      return [...lists, known(rank, channels), known(rank), known(channels), known(1)];
    },
    trailingSvds: () => {
      const matrices = list(1 + below(3), () => tensor(float(), positive(), positive()));
      const ranks = matrices.map(() => pick([1, 2, 4]));
      return [matrices, ranks, matrices.map(() => 3)];
    },
  };
}

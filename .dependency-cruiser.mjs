// Which layer of lib/ may import which, types included, and which layer may use which package; dependency-cruiser checks it in the
// lint. A new folder of lib/, a new package or an exception is added here, in the commit that needs it. Import cycles are found by
// biome (noImportCycles in biome.json); the layers of C++ and CUDA are checked by test/layers.test.ts.

/** The layers, folders or files of lib/, that each layer may import besides itself. */
const kLayers = {
  errors: [],
  // A constant that data, ops, losses and the benchmark share.
  ignored_target: [],
  // A limit on the time of work that a file determines.
  deadline: ['errors'],
  native: ['errors'],
  // What options must be: those of tables, which the command line has, too, and those of a function's call.
  options: ['errors'],
  tensor: ['native', 'options', 'errors'],
  ops: ['tensor', 'native', 'options', 'errors'],
  graph_cache: ['ops', 'tensor', 'errors'],
  io: ['tensor', 'native', 'options', 'errors'],
  nn: ['ops', 'tensor', 'options', 'errors'],
  text: ['io', 'deadline', 'options', 'errors'],
  data: ['text', 'io', 'ignored_target', 'options', 'errors'],
  models: ['nn', 'io', 'graph_cache', 'ops', 'tensor', 'options', 'errors'],
  adapters: ['models', 'nn', 'io', 'ops', 'tensor', 'options', 'deadline', 'errors'],
  losses: ['data', 'ops', 'tensor', 'ignored_target', 'options', 'errors'],
  optim: ['nn', 'ops', 'tensor', 'options', 'errors'],
  // Text generation: the state of the sequences that a model decodes, and what chooses their tokens.
  generate: [
    ...['adapters', 'models', 'data', 'text'],
    ...['nn', 'io', 'graph_cache', 'ops', 'tensor', 'options', 'errors'],
  ],
  eval: [
    ...['generate', 'losses', 'adapters', 'models', 'data', 'text'],
    ...['nn', 'io', 'ops', 'tensor', 'options', 'deadline', 'errors'],
  ],
  // The HTTP server of text generation.
  serve: ['generate', 'adapters', 'models', 'text', 'io', 'options', 'errors'],
  // The list of tasks, with the differences between language models, encoder-decoders and classifiers.
  tasks: [
    ...['eval', 'losses', 'adapters', 'models', 'data', 'text'],
    ...['nn', 'io', 'ops', 'tensor', 'options', 'errors'],
  ],
  train: [
    ...['export', 'generate', 'tasks', 'eval', 'optim', 'losses', 'adapters', 'models', 'data', 'text'],
    ...['nn', 'io', 'graph_cache', 'ops', 'tensor', 'options', 'errors'],
  ],
  // Files of a model and its adapter for other programs.
  export: [
    ...['generate', 'adapters', 'models', 'text'],
    ...['nn', 'io', 'ops', 'tensor', 'options', 'errors'],
  ],
  cli: [
    ...['export', 'serve', 'generate', 'train', 'tasks', 'eval', 'optim', 'losses', 'adapters', 'models', 'data', 'text'],
    ...['nn', 'io', 'ops', 'tensor', 'options', 'errors'],
  ],
};

/** Files at the top of lib/ that belong to a layer with another name. */
const kFiles = {
  errors: ['nearest', 'phrase', 'shown'],
  native: ['native_ops'],
  tensor: ['abort', 'autograd', 'device', 'gradcheck', 'graph', 'runtime'],
};

/** The layers that may use a package; bench is bench/harness. */
const kPackages = {
  '@huggingface/tokenizers': ['text'],
  '@huggingface/jinja': ['text'],
  '@huggingface/hub': ['export'],
  hyparquet: ['data'],
  commander: ['cli', 'bench'],
  yaml: ['io'],
  zod: ['models', 'text', 'options', 'adapters', 'generate', 'eval', 'train', 'bench'],
};

const kHarness = '^bench/harness/';

/** A pattern for the files of a layer. */
function place(layer) {
  if (layer === 'bench') return kHarness;
  const files = [layer, ...(kFiles[layer] ?? [])].map((name) => `${name}\\.ts`);
  return `^lib/(${[`${layer}/.*`, ...files].join('|')})$`;
}

/** A pattern for the files of a package, installed or not. */
const inPackage = (name) => `^(node_modules/)?${name}(/|$)`;

const layers = Object.keys(kLayers);

export default {
  forbidden: [
    ...layers.map((layer) => ({
      name: `${layer}-imports-its-layers`,
      comment: `lib/${layer} may import ${[layer, ...kLayers[layer]].join(', ')}.`,
      severity: 'error',
      from: { path: place(layer) },
      to: { path: '^lib/', pathNot: [layer, ...kLayers[layer]].map(place) },
    })),
    {
      name: 'every-file-has-a-layer',
      comment: 'A file of lib/ belongs to a layer of the table in .dependency-cruiser.mjs.',
      severity: 'error',
      from: { path: '^lib/', pathNot: ['^lib/index\\.ts$', ...layers.map(place)] },
      to: {},
    },
    {
      name: 'lib-imports-lib',
      comment: 'lib/ may import nothing of the repository but itself and package.json.',
      severity: 'error',
      from: { path: '^lib/' },
      to: { pathNot: '^(lib/|node_modules/|package\\.json$)', dependencyTypes: ['local', 'undetermined'] },
    },
    {
      name: 'harness-imports-lib',
      comment:
        'The benchmark may import every layer of lib/, since it measures every part of a training run, but not lib/index.ts, which ' +
        'would load the entire library into the process whose start is measured.',
      severity: 'error',
      from: { path: kHarness },
      to: { pathNot: [kHarness, '^lib/(?!index\\.ts$)', '^node_modules/'], dependencyTypes: ['local', 'undetermined'] },
    },
    ...Object.entries(kPackages).map(([name, users]) => ({
      name: `${name.replace(/\W+/g, '-').replace(/^-/, '')}-is-used-where-it-belongs`,
      comment: `${name} may be used by ${users.join(', ')}.`,
      severity: 'error',
      from: { path: ['^lib/', kHarness], pathNot: users.map(place) },
      to: { path: inPackage(name) },
    })),
    {
      name: 'packages-are-listed',
      comment: 'lib/ and the benchmark use only packages of the table in .dependency-cruiser.mjs, which are dependencies.',
      severity: 'error',
      from: { path: ['^lib/', kHarness] },
      to: {
        dependencyTypes: ['npm', 'npm-dev', 'npm-optional', 'npm-peer', 'npm-no-pkg', 'npm-unknown', 'unknown'],
        pathNot: Object.keys(kPackages).map(inPackage),
      },
    },
    {
      name: 'packages-are-dependencies',
      comment: 'What lib/ uses is in dependencies of package.json.',
      severity: 'error',
      from: { path: '^lib/' },
      to: { dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown', 'unknown'] },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true, // imports of types, too
    tsConfig: { fileName: 'tsconfig.json' },
  },
};

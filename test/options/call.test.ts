// The options of every function of the library that is no list of settings: a value of another type is an error that names the function
// and the option, before anything is done with it.
import { afterAll, describe, expect, it } from 'vitest';
import * as dataEntry from '../../lib/data/index.ts';
import * as evalEntry from '../../lib/eval/index.ts';
import * as balora from '../../lib/index.ts';
import {
  AdapterModel,
  ArgumentError,
  AutoModelForCausalLM,
  AutoModelForSeq2SeqLM,
  AutoModelForSequenceClassification,
  arrayRows,
  Batches,
  demoCheckpoint,
  evaluate,
  evaluateClassifier,
  FullModel,
  generate,
  LabelledBatches,
  openRows,
  resolveMethod,
  resolveModel,
  Seq2SeqBatches,
  saveMerged,
  saveModel,
  Tokenizer,
  Trainer,
  warmUpHead,
} from '../../lib/index.ts';
import * as io from '../../lib/io/index.ts';
import * as losses from '../../lib/losses/index.ts';
import * as nn from '../../lib/nn/index.ts';
import * as ops from '../../lib/ops/index.ts';
import * as optim from '../../lib/optim/index.ts';
import {
  checkArgument,
  checkCall,
  finiteNumber,
  instanceOf,
  kCall,
  listOf,
  oneOf,
  orNull,
  wholeNumber,
  withMethods,
} from '../../lib/options/call.ts';

describe('a kind of value', () => {
  it.each<[string, { schema: unknown; wanted: string }, unknown[], unknown[], string]>([
    ['boolean', kCall.boolean, [true], [0, 'true', null], 'true or false, got 0'],
    ['text', kCall.text, ['', 'a'], [5n, ['a']], 'text, got 5n'],
    ['texts', kCall.texts, [[], ['a']], ['a', [1]], 'a list of texts, got "a"'],
    ['function', kCall.function, [() => {}], [{}, 'f'], 'a function, got {}'],
    [
      'amount',
      kCall.amount,
      [0, 0.5, Number.POSITIVE_INFINITY],
      [-1, Number.NaN],
      'a number >= 0, got -1',
    ],
    ['ids', kCall.ids, [[1], Int32Array.of(1)], [null, 1], 'a list of ids, got null'],
    ['whole', wholeNumber({ least: 1 }), [1], [0, 1.5, '1', 1n], 'a whole number >= 1, got 0'],
    [
      'number',
      finiteNumber({ least: 0, above: true }),
      [0.1],
      [0, Number.NaN],
      'a number > 0, got 0',
    ],
    ['word', oneOf(['a', 'b']), ['a'], ['c', ['a'], {}], 'one of a, b, got "c"'],
    ['or null', orNull(kCall.text), [null, ''], [0], 'text or null, got 0'],
    ['list', listOf(kCall.text, 'a list of words'), [['a']], [[0], {}], 'a list of words, got [0]'],
    ['class', instanceOf(Map, 'a Map'), [new Map()], [new Set()], 'a Map, got a Set'],
    [
      'methods',
      withMethods('rows', 'row'),
      [{ row() {} }],
      [{ row: 1 }, null],
      'rows, got {"row":1}',
    ],
  ])('%s', (_, kind, good, bad, message) => {
    for (const value of good) checkArgument('f: x', kind as typeof kCall.text, value);
    for (const value of bad) {
      expect(() => checkArgument('f: x', kind as typeof kCall.text, value)).toThrow(ArgumentError);
    }
    const first = () => checkArgument('f: x', kind as typeof kCall.text, bad[0]);
    expect(first).toThrow(`f: x must be ${message}`);
  });

  it('signal is any AbortSignal', () => {
    const { signal } = new AbortController();
    for (const good of [signal, AbortSignal.any([signal]), AbortSignal.timeout(1)]) {
      checkArgument('f: x', kCall.signal, good);
    }
    for (const bad of [{}, null, new AbortController(), { aborted: false }, () => {}]) {
      expect(() => checkArgument('f: x', kCall.signal, bad)).toThrow('x must be an AbortSignal');
    }
  });

  it('that is secret is not shown', () => {
    const secret = { ...kCall.text, isSecret: true };
    expect(() => checkArgument('f: x', secret, ['hf_secret'])).toThrow(/^f: x must be text$/);
  });
});

it('undefined counts as not given, also of an unknown option, and the options must be an object', () => {
  checkCall<{ a?: string | undefined }>('f', { a: undefined }, { a: kCall.text });
  checkCall<object>('f', { b: undefined }, {});
  for (const bad of [null, 5n, 'a', ['a']]) {
    const call = () => checkCall<object>('f', bad as never, {});
    expect(call).toThrow(/^f: the options must be an object, got /);
  }
});

const model = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
const tokenizer = await Tokenizer.fromPretrained(demoCheckpoint);
const rows = arrayRows([{ prompt: 'a', response: 'b' }]);
const labelled = arrayRows([
  { text: 'a', label: 0 },
  { text: 'b', label: 1 },
]);
const data = await Batches.create(rows, tokenizer, { promptTemplate: 'none' });
const tuned = await AdapterModel.create(model, { r: 2, loraAlpha: 2 });
const other = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
const kTiny = {
  ...{ model_type: 'bert', vocab_size: 8, hidden_size: 8, intermediate_size: 8 },
  ...{
    num_hidden_layers: 1,
    num_attention_heads: 1,
    max_position_embeddings: 8,
    type_vocab_size: 2,
  },
};
const classifier = await AutoModelForSequenceClassification.fromConfig(kTiny);
const full = await AutoModelForCausalLM.fromPretrained(demoCheckpoint, { trainable: true });
afterAll(() => {
  tuned.dispose();
  for (const made of [model, other, classifier, full]) made.dispose();
});

type Options = Record<string, unknown>;
const anything = (value: unknown) => value as never;

/** Every function with options, and the names of those that must be of some type. */
const kFunctions: Record<string, [call: (options: never) => unknown, names: string]> = {
  'AutoModelForCausalLM.fromPretrained': [
    (options) => AutoModelForCausalLM.fromPretrained(demoCheckpoint, options),
    'dtype device trainable checkFinite onProgress ignoreKeys revision cacheDir offline timeoutMs signal onDownload accessToken',
  ],
  'AutoModelForCausalLM.fromConfig': [
    (options) => AutoModelForCausalLM.fromConfig({ model_type: 'llama' }, options),
    'dtype seed trainable device ignoreKeys',
  ],
  'AutoModelForSequenceClassification.fromPretrained': [
    (options) => AutoModelForSequenceClassification.fromPretrained(demoCheckpoint, options),
    'dtype onProgress signal newHead seed numLabels labelNames problemType',
  ],
  'AutoModelForSequenceClassification.fromConfig': [
    (options) => AutoModelForSequenceClassification.fromConfig(kTiny, options),
    'dtype seed device numLabels labelNames problemType',
  ],
  'AutoModelForSeq2SeqLM.fromPretrained': [
    (options) => AutoModelForSeq2SeqLM.fromPretrained(demoCheckpoint, options),
    'dtype device onProgress signal',
  ],
  resolveModel: [
    (options) => resolveModel('a/b', options),
    'revision signal onDownload hubUrl timeoutMs',
  ],
  'Tokenizer.fromPretrained': [
    (options) => Tokenizer.fromPretrained('a/b', options),
    'revision signal offline',
  ],
  'Tokenizer.fromFile': [(options) => Tokenizer.fromFile('x', options), 'configPath'],
  encode: [(options) => tokenizer.encode('a', options), 'addSpecialTokens parseSpecial'],
  encodePair: [(options) => tokenizer.encodePair('a', null, options), 'addSpecialTokens maxLength'],
  decode: [(options) => tokenizer.decode([1], options), 'skipSpecialTokens'],
  decodeStream: [(options) => tokenizer.decodeStream(options), 'skipSpecialTokens'],
  withLongTexts: [(options) => tokenizer.withLongTexts(() => 1, options), 'signal'],
  openRows: [(options) => openRows('x.jsonl', options), 'columns signal dataWeights'],
  'Batches.create': [
    (options) => Batches.create(rows, tokenizer, options),
    'batchSize maxLength packing padding onUnsupervised onWarning shuffle seed onProgress cacheBytes signal promptTemplate promptField responseField dataFormat messagesField textField roleMap trainOnTurns corruption',
  ],
  'LabelledBatches.create': [
    (options) => LabelledBatches.create(labelled, tokenizer, options),
    'batchSize maxLength groupByLength onWarning shuffle seed onProgress signal glue textField labelField numLabels labelNames problemType corruption',
  ],
  'Seq2SeqBatches.create': [
    (options: Options) =>
      Seq2SeqBatches.create(rows, tokenizer, anything({ decoderStartTokenId: 0, ...options })),
    'decoderStartTokenId maxSourceLength maxTargetLength onWarning shuffle promptTemplate signal',
  ],
  evaluate: [(options) => evaluate(tuned, data.batches(0), options), 'kl signal onProgress'],
  evaluateClassifier: [
    (options) => evaluateClassifier(classifier, [], options),
    'signal onProgress',
  ],
  warmUpHead: [
    (options) => warmUpHead(classifier, anything({ batches: () => [] }), options),
    'epochs learningRate weightDecay batchSize seed signal',
  ],
  'AdapterModel.create': [
    (options) => AdapterModel.create(other, { r: 2 }, options),
    'seed name onProgress',
  ],
  'AdapterModel.fromPretrained': [
    (options) => AdapterModel.fromPretrained(other, 'x', options),
    'seed name onProgress ignoreKeys allowOtherBase method',
  ],
  addAdapter: [(options) => tuned.addAdapter('b', {}, options), 'seed onProgress'],
  savePretrained: [(options) => tuned.savePretrained('x', options), 'form'],
  FullModel: [(options) => new FullModel(full, options), 'teacher'],
  saveModel: [(options) => saveModel(model, 'x', options), 'dtype replace'],
  saveMerged: [(options) => saveMerged(tuned, 'x', options), 'dtype'],
  generate: [
    (options: Options) => generate(model, anything({ ids: [1], ...options })),
    'tokenizer adapter signal maxNewTokens ids',
  ],
  resolveMethod: [(options) => resolveMethod('lora', options), 'adapter regularizers task'],
  Trainer: [
    (options: Options) => new Trainer(anything({ tuned, data, ...options })),
    'tuned data evalData loss terms afterBackward callbacks signal regularizers learningRate output maxSteps',
  ],
};

describe.each(Object.entries(kFunctions))('%s', (_, [call, names]) => {
  const use = async (options: unknown): Promise<unknown> =>
    (call as (given: unknown) => unknown)(options);

  it.each(names.split(' '))('refuses another type of %s', async (name) => {
    for (const wrong of [{ odd: [Number.NaN] }, 5n, Symbol('x'), [{}]]) {
      // An object is one for these.
      if (
        ['regularizers', 'adapter'].includes(name) &&
        !Array.isArray(wrong) &&
        typeof wrong === 'object'
      )
        continue;
      const failure = use({ [name]: wrong });
      await expect(failure).rejects.toThrow(ArgumentError);
      await expect(failure).rejects.toThrow(new RegExp(`\\b${name}\\b`));
      await expect(failure).rejects.not.toThrow(/\[object|undefined/);
    }
  });
});

/** The functions of the package with a parameter named options, called without the arguments before it. */
const kWithOptions = Object.entries({
  balora,
  data: dataEntry,
  eval: evalEntry,
  io,
  losses,
  ops,
}).flatMap(([entry, values]) =>
  Object.entries(values).flatMap(([name, value]): [string, (...args: unknown[]) => unknown][] => {
    const [, list = ''] = /^(?:async )?function\*? \w*\((.*)\) \{$/m.exec(String(value)) ?? [];
    const at = list.split(', ').findIndex((one) => /^options\b/.test(one));
    const call = (options: unknown) =>
      (value as (...args: unknown[]) => unknown)(...new Array(at).fill(undefined), options);
    return at < 0 ? [] : [[`${entry}: ${name}`, call]];
  }),
);
/** Those of them that check another argument first. */
const kChecksOthersFirst =
  /: (saveM|regularizer|evaluate|openChat|generate|openRows|resolve|calibrate|warm|read|adapter|openCode)/;

type Call = (options: unknown) => unknown;
const anyOf = (value: object) => value as Record<string, (...args: unknown[]) => unknown>;
const methodsOf = (type: { prototype: object }) => anyOf(type.prototype);

/** Methods, constructors, and functions whose options have another name. */
const kOthersWithOptions: [string, Call][] = [
  ['Tensor.backward', (options) => methodsOf(balora.Tensor).backward?.(null, options)],
  ['memoryStats', (options) => balora.memoryStats(anything(options))],
  ['resetPeakMemory', (options) => balora.resetPeakMemory(anything(options))],
  ['trimMemory', (options) => balora.trimMemory(anything(options))],
  ['setMemoryLimit', (options) => balora.setMemoryLimit(0, anything(options))],
  ['forward', (options) => model.forward(anything(null), anything(options))],
  [
    'forwardWithHiddenStates',
    (options) => methodsOf(balora.Model).forwardWithHiddenStates?.(null, options),
  ],
  ['Seq2SeqLM.prepare', (options) => methodsOf(balora.Seq2SeqLM).prepare?.(null, options)],
  ['headLosses', (options) => ops.headLosses(anything(options))],
  ['headRows', (options) => ops.headRows(anything(options))],
  ['lowRank', (options) => ops.rowNorm(anything({}), [anything(options)])],
  ['learningRateSchedule', (options) => optim.learningRateSchedule(anything(options))],
  ['clipNorm', (options) => optim.clipNorm([], anything(options))],
  ['step', (options) => methodsOf(optim.Optimizer).step?.(options)],
  ['AdamW', (options) => new optim.AdamW([], anything(options))],
  ['RiemannianAdamW', (options) => new optim.RiemannianAdamW([], anything(options))],
  ['LoraFa', (options) => new optim.LoraFa([], anything(options))],
  ['Sgd', (options) => new optim.Sgd([], anything(options))],
  ['Adafactor', (options) => new optim.Adafactor([], anything(options))],
  ['RMSNorm', (options) => new nn.RMSNorm(anything(null), anything(options))],
  ['LayerNorm', (options) => new nn.LayerNorm(anything(null), anything(null), anything(options))],
  ['SafetensorsFile.read', (options) => methodsOf(io.SafetensorsFile).read?.('x', options)],
  ['GgufFile.read', (options) => methodsOf(io.GgufFile).read?.('x', options)],
  ['GgufFile.readBlocks', (options) => methodsOf(io.GgufFile).readBlocks?.('x', options)],
  ['HeadLoss', (options) => new losses.HeadLoss(anything({}), anything([]), anything(options))],
  ['BaLoraLoss', (options) => new losses.BaLoraLoss(anything({}), anything(options))],
  ['NluLoss', (options) => new losses.NluLoss(anything(options))],
  ['defineTerm', (options) => balora.defineTerm(anything(options))],
  ['plan', (options) => new Trainer({ tuned, data }).plan(anything(options))],
  ['convertToLora', (options) => tuned.convertToLora('x', anything(options))],
  [
    'regularizerFactorAt',
    (options) =>
      losses.regularizerFactorAt('constant', { step: 0, totalSteps: 1 }, anything(options)),
  ],
];

describe('an option that a function does not have is refused by', () => {
  const own = Object.entries(kFunctions).map(([name, [call]]) => [name, call as Call] as const);
  it.each([
    ...own,
    ...kWithOptions.filter(([name]) => !kChecksOthersFirst.test(name)),
    ...kOthersWithOptions,
  ])('%s', async (_, call) => {
    const use = async () => {
      const made = (await call({ odd: undefined, xyzzy: 1 })) as
        | Partial<AsyncGenerator>
        | undefined;
      await made?.next?.();
    };
    await expect(use()).rejects.toThrow(/unknown option "xyzzy"/);
  });
});

it('micro-batches are made of rows themselves as of a source of them', async () => {
  const same = await Batches.create([{ prompt: 'a', response: 'b' }], tokenizer, {
    promptTemplate: 'none',
  });
  expect(same.fingerprint).toBe(data.fingerprint);
  await expect(Batches.create([], tokenizer)).rejects.toThrow(/the list of rows is empty/);
});

it('arguments beside the options are checked, too', async () => {
  await expect(Batches.create('x' as never, tokenizer)).rejects.toThrow(
    /rows must be a list of rows, or what openRows\(\) returns/,
  );
  await expect(Batches.create(rows, {} as never)).rejects.toThrow(/tokenizer must be a Tokenizer/);
  await expect(evaluate(tuned, data as never)).rejects.toThrow(
    /the data must be micro-batches, such/,
  );
  for (const call of [
    () => evaluate({} as never, []),
    () => evaluateClassifier(5 as never, []),
    () => warmUpHead(null as never, { batches: () => [] } as never),
    () => saveModel({} as never, 'x'),
  ]) {
    await expect(call()).rejects.toThrow(/the model must be a/);
  }
  await expect(AdapterModel.create({} as never)).rejects.toThrow(/the model must be a model, such/);
  await expect(openRows(5 as never)).rejects.toThrow(
    /the file must be a path or a list of paths, got 5/,
  );
  expect(() => new Trainer(null as never)).toThrow(/the options must be an object, got null/);
  expect(() => new Trainer({} as never)).toThrow(
    /Trainer: tuned must be an AdapterModel or a FullModel/,
  );
  expect(() => tokenizer.encode(5n as never)).toThrow(/the text must be text, got 5n/);
  expect(() => tokenizer.decode(null as never)).toThrow(/the ids must be a list of ids, got null/);
  expect(() => new dataEntry.PromptTemplate({} as never)).toThrow(
    /prompt template: it must be text, got {}/,
  );
  expect(() => arrayRows([{}, null] as never)).toThrow(/row 1 must be an object, got null/);
});

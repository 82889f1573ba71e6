// A small model and its trainer, for programs that train it until something happens to them.
import { fileURLToPath } from 'node:url';
import {
  AdapterModel,
  arrayRows,
  AutoModelForSeq2SeqLM,
  Batches,
  CausalLM,
  demoCheckpoint,
  setNumThreads,
  Tokenizer,
  Trainer,
} from 'balora';
import { Linear, Module } from 'balora/nn';
import { add, embedding, indexSelect, randn, silu } from 'balora/ops';

const kVocabulary = 31;
const kWidth = 16;

class Block extends Module {
  constructor(seed) {
    super();
    const weight = (at) => randn([kWidth, kWidth], { seed: seed + at, deviation: 0.25 });
    this.up_proj = new Linear(weight(0));
    this.down_proj = new Linear(weight(1));
  }

  forward(x) {
    return add(x, this.down_proj.forward(silu(this.up_proj.forward(x))));
  }
}

class Small extends CausalLM {
  modelType = 'small';

  constructor(vocabulary) {
    super({ nameOrPath: 'small', folder: '', dtype: 'f32' });
    this.vocabSize = vocabulary;
    this.embed = randn([vocabulary, kWidth], { seed: 1 });
    this.blocks = [new Block(10), new Block(20)];
  }

  get head() {
    return { weight: this.embed, softcap: 0 };
  }

  configJson() {
    return { model_type: 'small' };
  }

  hidden({ ids, wanted }) {
    const all = this.blocks.reduce((x, block) => block.forward(x), embedding(this.embed, ids));
    return wanted === null ? all : indexSelect(all, wanted);
  }
}

function batch(epoch, index) {
  const rows = 24;
  const ids = Int32Array.from({ length: rows }, (_, t) => (7 * epoch + 11 * index + 5 * t) % kVocabulary);
  return {
    inputIds: ids,
    positions: Int32Array.from(ids, (_, t) => t),
    cuSeqlens: Int32Array.of(0, rows),
    targets: ids.map((id, t) => (t === rows - 1 ? -100 : (3 * id + 1) % kVocabulary)),
  };
}

/** Synthetic batches instead of text, in the same order in every epoch. */
const arithmetic = {
  fingerprint: 'small',
  batchCount: () => 7,
  *batches(epoch, start) {
    for (let i = start; i < 7; i++) yield batch(epoch, i);
  },
};

/** Rows of text as the library's batches, in a new order in every epoch. */
async function shuffled() {
  const tokenizer = await Tokenizer.fromPretrained(demoCheckpoint);
  const rows = Array.from({ length: 14 }, (_, i) => ({
    prompt: `The ${i}th whale is`,
    response: ` ${'great '.repeat(1 + (i % 3))}and number ${i}.`,
  }));
  const data = await Batches.create(arrayRows(rows), tokenizer, { batchSize: 2, shuffle: true, seed: 3 });
  return { data, vocabulary: tokenizer.vocabSize };
}

const kT5 = fileURLToPath(new URL('../../fixtures/architectures/t5/model', import.meta.url));

/** Sources and targets for a tiny T5, the same order in every epoch: the target is the source backwards. */
const pairs = {
  fingerprint: 'pairs',
  batchCount: () => 7,
  *batches(epoch, start) {
    for (let i = start; i < 7; i++) {
      const source = Int32Array.from({ length: 6 }, (_, t) => 2 + ((5 * epoch + 3 * i + 7 * t) % 20));
      const targets = Int32Array.of(...Int32Array.from(source).reverse(), 1);
      const inputIds = Int32Array.of(0, ...targets.subarray(0, -1));
      yield { ...segment(source), decoder: { ...segment(inputIds), targets } };
    }
  },
};

function segment(inputIds) {
  const positions = inputIds.map((_, t) => t);
  return { inputIds, positions, cuSeqlens: Int32Array.of(0, inputIds.length) };
}

/** Other batches to evaluate on. */
const held = { fingerprint: 'held', batchCount: () => 2, batches: () => [batch(100, 1), batch(100, 2)] };

async function subject(source) {
  if (source === 'evaluated') {
    // The loss becomes worse in the end, so that the best step is an early one.
    const options = { evalData: held, evalSteps: 3, metricForBestModel: 'loss', learningRate: 0.1 };
    return { data: arithmetic, model: new Small(kVocabulary), options };
  }
  if (source === 'seq2seq') {
    return { data: pairs, model: await AutoModelForSeq2SeqLM.fromPretrained(kT5) };
  }
  if (source === 'arithmetic') return { data: arithmetic, model: new Small(kVocabulary) };
  const { data, vocabulary } = await shuffled();
  return { data, model: new Small(vocabulary) };
}

/** @param source 'arithmetic', 'evaluated', 'shuffled' or 'seq2seq' */
export async function smallTrainer({ source = 'arithmetic', ...options }) {
  setNumThreads(1);
  const { data, model, options: own = {} } = await subject(source);
  const tuned = await AdapterModel.create(model, {
    ...{ r: 4, loraAlpha: 4, initLoraWeights: 'pissa' },
  });
  return new Trainer({
    tuned,
    data,
    resume: true,
    saveSteps: 3,
    learningRate: 0.01,
    gradientAccumulationSteps: 2,
    regularizers: { consistencyWeight: 0.05, diversityWeight: 0.01, svdWeight: 0.01, svdTopK: 4 },
    ...own,
    ...options,
  });
}

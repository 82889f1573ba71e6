// Trains an adapter on a small model into the folder of its first argument, resuming if there is something to resume,
// and prints a line a step. May be killed at any moment. Prints "done" and a digest of the result at the end.
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  AdapterModel,
  add,
  CausalLM,
  embedding,
  Linear,
  Module,
  randn,
  silu,
  setNumThreads,
  Trainer,
} from 'balora';

const kVocabulary = 31;
const kWidth = 16;
const [folder, steps = '40'] = process.argv.slice(2);

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
  vocabSize = kVocabulary;

  constructor() {
    super({ nameOrPath: 'small', folder: '', dtype: 'f32' });
    this.embed = randn([kVocabulary, kWidth], { seed: 1 });
    this.blocks = [new Block(10), new Block(20)];
  }

  get head() {
    return { weight: this.embed, softcap: 0 };
  }

  configJson() {
    return { model_type: 'small' };
  }

  hidden({ ids }) {
    return this.blocks.reduce((x, block) => block.forward(x), embedding(this.embed, ids));
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

const data = {
  fingerprint: 'small',
  batchCount: () => 7,
  *batches(epoch, start) {
    for (let i = start; i < 7; i++) yield batch(epoch, i);
  },
};

setNumThreads(1);
const tuned = await AdapterModel.create(new Small(), { r: 4, loraAlpha: 4, initLoraWeights: 'pissa' });
const trainer = new Trainer({
  tuned,
  data,
  output: folder,
  resume: true,
  saveSteps: 3,
  maxSteps: Number(steps),
  learningRate: 0.01,
  gradientAccumulationSteps: 2,
  regularizers: { consistencyWeight: 0.05, diversityWeight: 0.01, svdWeight: 0.01, svdTopK: 4 },
});
for await (const event of trainer.run()) {
  if (event.type === 'step') console.log(`step ${event.record.step}`);
}
const bytes = await readFile(join(folder, 'adapter_model.safetensors'));
console.log(`done ${createHash('sha256').update(bytes).digest('hex')}`);

// The conditions of the study: a real task whose training data is made unfair in one known way. All of it is determined by a seed.
import { arrayRows, openRows } from 'balora';

/** A seeded generator (mulberry32), uniform in [0, 1). */
export function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
  };
}

export function shuffled(list, seed) {
  const [result, random] = [[...list], generator(seed)];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
}

async function read(path, columns) {
  const file = await openRows(path, { columns });
  const rows = [];
  for (let i = 0; i < file.length; i++) {
    const { sentence, label } = await file.row(i);
    rows.push({ sentence, label: Number(label) });
  }
  return rows;
}

/** Every n-th row, so that a file sorted by label is sampled evenly. */
const everyNth = (rows, count) => {
  const step = Math.max(1, Math.floor(rows.length / count));
  return rows.filter((_, i) => i % step === 0).slice(0, count);
};

/** The rows with the labels of a share of them replaced by the other class. */
function withNoise(rows, share, seed) {
  const flipped = new Set(
    shuffled([...rows.keys()], seed).slice(0, Math.round(share * rows.length)),
  );
  return rows.map((row, i) => (flipped.has(i) ? { ...row, label: 1 - row.label } : row));
}

/** `count` rows, of which `share` are from class 0 and the rest from class 1. */
function imbalanced(rows, count, share) {
  const few = Math.round(share * count);
  const of = (label) => rows.filter((row) => row.label === label);
  return [...of(0).slice(0, few), ...of(1).slice(0, count - few)];
}

/** The conditions by name: title, metric, data set, and the choice of training rows. */
export const CONDITIONS = {
  clean: {
    title: 'SST-2',
    metric: 'accuracy',
    file: 'sst2',
    rows: (rows, count) => rows.slice(0, count),
  },
  imbalanced: {
    title: 'SST-2, 5 % negative',
    metric: 'recall of class 0',
    file: 'sst2',
    rows: (rows, count) => imbalanced(rows, count, 0.05),
  },
  imbalanced20: {
    title: 'SST-2, 20 % negative',
    metric: 'recall of class 0',
    file: 'sst2',
    rows: (rows, count) => imbalanced(rows, count, 0.2),
  },
  noise20: {
    title: 'SST-2, 20 % of the labels flipped',
    metric: 'accuracy',
    file: 'sst2',
    rows: (rows, count, seed) => withNoise(rows.slice(0, count), 0.2, seed),
  },
  noise40: {
    title: 'SST-2, 40 % of the labels flipped',
    metric: 'accuracy',
    file: 'sst2',
    rows: (rows, count, seed) => withNoise(rows.slice(0, count), 0.4, seed),
  },
  cola: {
    title: 'CoLA',
    metric: 'Matthews',
    file: 'cola',
    rows: (rows, count) => rows.slice(0, count),
  },
};

const kColumns = { sst2: ['label', 'sentence'], cola: ['sentence', 'label'] };

/** Training and held-out rows of a condition; the held-out ones are never changed. */
export async function rowsOf(name, { data, seed, trainRows, evalRows }) {
  const { file, rows } = CONDITIONS[name];
  const [train, dev] = await Promise.all(
    ['train', 'dev'].map((part) => read(`${data}/${file}/${part}.tsv`, kColumns[file])),
  );
  return {
    train: arrayRows(rows(shuffled(train, seed), trainRows, seed)),
    heldOut: arrayRows(everyNth(dev, evalRows)),
  };
}

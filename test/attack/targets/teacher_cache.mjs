// The file of cached teacher outputs: after damage, a record is gone or has the numbers that were written. One that runs share is refused
// instead, and left as it is.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { tensor } from 'balora';
import { TeacherCache } from '../../../dist/tasks/teacher_cache.js';
import { require, requireClose } from '../finding.mjs';
import { mutateBytes } from '../mutations.mjs';

const kFile = 'teacher_cache.bin';
const kKind = { model: 'tiny', dtype: 'f32', channels: 4, vocabulary: 11, temperature: 1 };
/** Sequences of a batch and the rows that a loss uses. */
const kSequences = [
  { ids: Int32Array.of(1, 2, 3), begin: 0, end: 3 },
  { ids: Int32Array.of(4, 5, 6, 7), begin: 3, end: 7 },
];
const kSelected = { rows: Int32Array.of(0, 2, 3, 6) };
const kMean = Float32Array.from({ length: 16 }, (_, i) => i / 8);
const kEntropy = Float64Array.of(0.1, 0.2, 0.3, 0.4);

async function fill(path) {
  const cache = new TeacherCache({ path }, kKind);
  const [mean, entropy] = [tensor(kMean, { shape: [4, 4] }), tensor(kEntropy)];
  await cache.add(kSequences, kSelected, { mean, entropy });
  mean.dispose();
  entropy.dispose();
  cache.close();
}

async function run({ kind, shared }, _state, folder) {
  const path = join(folder, kFile);
  const before = readFileSync(path);
  const place = shared === null ? { path } : { path, shared };
  let cache = null;
  try {
    cache = new TeacherCache(place, { ...kKind, ...kind });
    const found = cache.get(kSequences, kSelected);
    if (found === null) return;
    require(Object.keys(kind).length === 0, 'numbers of another model were accepted');
    requireClose('the mean', await found.mean.data(), kMean);
    requireClose('the entropy', await found.entropy.data(), kEntropy);
    found.mean.dispose();
    found.entropy.dispose();
  } finally {
    cache?.close();
    // A run that appends completes a head, and cuts off what an interrupted one has left of its last record.
    const after = shared === null ? before : readFileSync(path);
    const common = shared?.appends === true ? Math.min(before.length, after.length) : undefined;
    require(after.subarray(0, common).equals(before.subarray(0, common)), 'a shared file was changed');
  }
  // The cache is usable again whatever it held.
  if (shared === null) await fill(path);
}

export default {
  what: 'the cache of the outputs of a teacher',
  share: 0.5,
  open: async ({ folder }) => {
    const path = join(folder, kFile);
    await fill(path);
    return { whole: readFileSync(path) };
  },
  input: (random, { whole }) => ({
    kind: random.chance(0.1) ? { model: 'other' } : {},
    shared: random.pick([null, { appends: true }, { appends: false }]),
    files: { [kFile]: mutateBytes(random, whole, random.pick([40, 600, whole.length])) },
  }),
  run,
};

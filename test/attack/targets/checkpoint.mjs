// The folder of an interrupted run, any file of which was changed: the run is continued to the same bytes, or refused. With overwrite
// it begins anew, and files of others stay.
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join, relative } from 'node:path';
import { smallTrainer } from '../../lifetime/programs/small_trainer.mjs';
import { Finding, require } from '../finding.mjs';
import { mutateBytes, mutateJsonText, mutateText } from '../mutations.mjs';

const kSteps = 6;
const kOptions = { maxSteps: kSteps, saveSteps: 2 };
const kResult = 'adapter_model.safetensors';

function filesBelow(folder) {
  return Object.fromEntries(
    readdirSync(folder, { recursive: true })
      .map((name) => join(folder, name))
      .filter((path) => statSync(path).isFile())
      .map((path) => [relative(folder, path), readFileSync(path)]),
  );
}

const digest = (bytes) => createHash('sha256').update(bytes).digest('hex');

async function train(output, options = {}, stopAt = null) {
  const trainer = await smallTrainer({ output, ...kOptions, ...options });
  for await (const event of trainer.run()) if (event.type === 'step' && event.record.step === stopAt) break;
}

/** Writes the checksums of a checkpoint's files anew. */
function sign(files, checkpoint) {
  const lines = ['state.json', 'state.safetensors'].map((name) => `${digest(files[join(checkpoint, name)])}  ${name}\n`);
  files[join(checkpoint, 'SHA256SUMS')] = Buffer.from(lines.join(''));
}

function input(random, { whole }) {
  const files = { ...whole };
  const names = Object.keys(files).filter((name) => name.startsWith('run/'));
  const name = random.pick(names);
  const kind = random.pick(['bytes', 'bytes', 'json', 'signed', 'missing', 'planted']);
  const mutated = (path) => {
    const contents = files[path];
    if (/\.json$/.test(path) && random.chance(0.8)) return Buffer.from(mutateJsonText(random, JSON.parse(contents)));
    return /\.(json|jsonl)$|SUMS$/.test(path) && random.chance(0.5)
      ? Buffer.from(mutateText(random, contents.toString()))
      : mutateBytes(random, contents, 2000);
  };
  if (kind === 'bytes' || kind === 'json') files[name] = mutated(name);
  if (kind === 'missing') delete files[name];
  if (kind === 'planted') files[`run/${random.pick(['lock', 'best/best.json', 'config.json', 'checkpoints/step-99/state.json', 'manifest.json'])}`] = random.bytes(20);
  if (kind === 'signed') {
    const checkpoint = random.pick(names.filter((path) => path.endsWith('state.json'))).replace('/state.json', '');
    const path = join(checkpoint, random.chance(0.8) ? 'state.json' : 'state.safetensors');
    files[path] = mutated(path);
    sign(files, checkpoint);
  }
  const moved = Object.fromEntries(Object.entries(files).map(([path, contents]) => [join('out', path), contents]));
  return { kind, name, overwrite: random.chance(0.2), files: { ...moved, 'out/notes.txt': 'mine' } };
}

async function run({ kind, overwrite }, { expected }, folder) {
  const output = join(folder, 'out');
  await train(output, overwrite ? { overwrite: true, resume: false } : {});
  const found = digest(readFileSync(join(output, kResult)));
  // A file that was signed again counts as written by balora, and may lead elsewhere.
  if (kind !== 'signed' && found !== expected) throw new Finding('the continued run ended in other bytes');
  require(readFileSync(join(output, 'notes.txt'), 'utf8') === 'mine', 'a file of the user was changed');
  require(!existsSync(join(output, 'run/lock')), 'the lock is still there');
}

export default {
  what: 'the folder of an interrupted run: checkpoints, checksums, record, lock, manifest',
  share: 1.5,
  open: async ({ folder }) => {
    await train(join(folder, 'straight'));
    const expected = digest(readFileSync(join(folder, 'straight', kResult)));
    await train(join(folder, 'stopped'), {}, 4);
    return { expected, whole: filesBelow(join(folder, 'stopped')) };
  },
  input,
  run,
  accepts: ['ERR_IO', 'ERR_NOT_FINITE'],
  perProcess: 300,
};

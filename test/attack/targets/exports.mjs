// Exports into one folder, or of one file, at the same moment, some of which are killed: one of them is there whole, none is mixed with
// another, each other one says why it failed, and a later one is not blocked.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AdapterModel, AutoModelForCausalLM, demoCheckpoint } from 'balora';
import { runCommand } from '../processes.mjs';
import { require } from '../finding.mjs';

const kModel = ['--model', demoCheckpoint];
const kAdapted = [...kModel, '--adapter', 'ADAPTER'];
/** Commands whose outputs differ in their files. */
const kFolders = {
  whole: ['export', ...kAdapted, '--to', 'safetensors'],
  shards: ['export', ...kAdapted, '--to', 'safetensors', '--max-shard-size', '1286KB'],
  alone: ['export', ...kModel, '--to', 'safetensors', '--max-shard-size', '2058KB'],
  mlx: ['export', ...kAdapted, '--to', 'mlx'],
  lora: ['convert', ...kAdapted],
};
const kFiles = {
  f32: ['export', ...kAdapted, '--to', 'gguf-lora', '--outtype', 'f32'],
  f16: ['export', ...kAdapted, '--to', 'gguf-lora', '--outtype', 'f16'],
};

/** The files of an output with their bytes; of a card, which names the time of its making, nothing. */
function filesOf(output, isFolder) {
  if (!isFolder) return { file: readFileSync(output, 'latin1') };
  const names = readdirSync(output).filter((name) => !name.startsWith('.balora-') && name !== 'README.md');
  return Object.fromEntries(names.sort().map((name) => [name, readFileSync(join(output, name), 'latin1')]));
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

async function run({ isFolder, commands, delays, kills, overwrite }, { adapter, expected }, folder) {
  const output = join(folder, 'out');
  const all = Object.fromEntries(
    Object.entries({ ...kFolders, ...kFiles }).map(([name, args]) => [name, args.map((arg) => (arg === 'ADAPTER' ? adapter : arg))]),
  );
  for (const name of [...commands, 'whole', 'f32']) {
    if (expected[name] !== undefined) continue;
    const at = join(mkdtempSync(join(tmpdir(), 'balora-attack-exports-')), 'out');
    const { code, stderr } = await runCommand([...all[name], '--output', at]);
    require(code === 0, () => `an export that nothing disturbs ended with ${code}: ${stderr.slice(-500)}`);
    expected[name] = filesOf(at, name in kFolders);
    rmSync(join(at, '..'), { recursive: true });
  }
  const more = overwrite ? ['--overwrite'] : [];
  const ends = await Promise.all(
    commands.map(async (name, i) => {
      await new Promise((done) => setTimeout(done, delays[i]));
      return { name, killed: kills[i], ...(await runCommand([...all[name], '--output', output, ...more], { killAfter: kills[i] })) };
    }),
  );
  for (const { code, signal, stderr } of ends) {
    if (signal === 'SIGKILL') continue;
    require([0, 1, 2].includes(code), () => `an export ended with ${signal ?? code}: ${stderr.slice(-500)}`);
    require(code === 0 || /^error: .*\/out/m.test(stderr), () => `no output is named: ${stderr.slice(-500)}`);
  }
  const winners = ends.filter(({ code }) => code === 0);
  const isKilled = ends.some(({ signal }) => signal === 'SIGKILL');
  require(isKilled || winners.length > 0, () => `none of the exports came to its end: ${ends.map(({ stderr }) => stderr).join('')}`);
  require(overwrite || winners.length <= 1, () => `${winners.length} exports came to their end in one place`);
  if (winners.length > 0 && !isKilled) {
    const found = filesOf(output, isFolder);
    require(winners.some(({ name }) => same(found, expected[name])), () => `files of several exports are mixed: ${Object.keys(found)}`);
  }
  const last = isFolder ? 'whole' : 'f32';
  const { code, stderr } = await runCommand([...all[last], '--output', output, '--overwrite']);
  require(code === 0, () => `a later export is blocked: ${stderr.slice(-500)}`);
  require(same(filesOf(output, isFolder), expected[last]), () => `a later export is mixed with what was there: ${readdirSync(isFolder ? output : folder)}`);
}

export default {
  what: 'exports into one folder or file at once, some of which are killed',
  share: 2,
  open: async () => {
    const adapter = mkdtempSync(join(tmpdir(), 'balora-attack-adapter-'));
    process.once('exit', () => rmSync(adapter, { recursive: true, force: true }));
    const model = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
    const tuned = await AdapterModel.create(model, { method: 'pissa', r: 2 });
    await tuned.savePretrained(adapter);
    tuned.dispose();
    model.dispose();
    return { adapter, expected: {} };
  },
  input: (random) => {
    const isFolder = random.chance(0.8);
    const commands = random.several(2, 3, () => random.pick(Object.keys(isFolder ? kFolders : kFiles)));
    return {
      isFolder,
      commands,
      delays: commands.map(() => random.pick([0, 0, random.below(200)])),
      kills: commands.map(() => (random.chance(0.25) ? random.integer(200, 1500) : null)),
      overwrite: random.chance(0.4),
    };
  },
  run,
  elsewhere: true,
  hangSeconds: 300,
  slowSeconds: 150,
};

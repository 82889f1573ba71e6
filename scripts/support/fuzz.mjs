// libFuzzer's programs for the readers of files (test/native/fuzz): their build with clang, their first inputs, and their runs.
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inRoot, root, runLogged, say } from './shell.mjs';

const kReaders = ['gguf', 'safetensors', 'json'];
const kVersions = [22, 21, 20, 19, 18, 17, 16, 15, 14];
const kCompilers = ['clang++', ...kVersions.map((version) => `clang++-${version}`)];
const kFolder = inRoot('build', 'fuzz');
const kFixtures = inRoot('test', 'fixtures', 'quant');
/** Largest input: more than the headers of the fixtures, so that most of the time is spent in them. */
const kMostBytes = 6000;
const kMostMiB = 1024;

let found;

/** The first clang on the PATH that links libFuzzer; null where there is none. */
export function fuzzingCompiler() {
  if (found === undefined) found = findCompiler();
  return found;
}

function findCompiler() {
  mkdirSync(kFolder, { recursive: true });
  const source = join(kFolder, 'probe.cc');
  writeFileSync(
    source,
    '#include <cstdint>\n#include <cstddef>\n#include <vector>\nextern "C" int LLVMFuzzerTestOneInput(const uint8_t*, size_t) { return 0; }\n',
  );
  const flags = ['-std=c++20', '-fsanitize=fuzzer,address,undefined', '-o', join(kFolder, 'probe')];
  const links = (command) =>
    spawnSync(command, [...flags, source], { stdio: 'ignore' }).status === 0;
  return kCompilers.find(links) ?? null;
}

async function build(compiler) {
  const defines = ['-DBALORA_FUZZ=ON', `-DCMAKE_CXX_COMPILER=${compiler}`];
  await runLogged('cmake-fuzz', 'cmake', ['-S', root, '-B', kFolder, ...defines]);
  await runLogged('build-fuzz', 'cmake', ['--build', kFolder, '--parallel', '2']);
}

/** The folder of a reader's first inputs, made of the fixtures. */
function seedsOf(reader) {
  const folder = join(kFolder, 'seeds', reader);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const copy = (end) => {
    for (const name of readdirSync(kFixtures).filter((one) => one.endsWith(end))) {
      copyFileSync(join(kFixtures, name), join(folder, name));
    }
  };
  if (reader === 'gguf') copy('.gguf');
  if (reader === 'safetensors') copy('.safetensors');
  if (reader === 'json') {
    writeFileSync(join(folder, 'index'), 'i{"metadata":{"n":1},"weight_map":{"a":"b","c":"d"}}');
    writeFileSync(join(folder, 'value'), 'v[{"a\\u00e9":[1,-2.5e3,true,null,""]}]');
  }
  return folder;
}

/** Runs one fuzzer; its counts, with a line that names the input where it found something. */
function runReader(reader, { seed, seconds }) {
  const corpus = join(kFolder, 'corpus', reader);
  const findings = join(kFolder, 'findings', '/');
  for (const folder of [corpus, findings]) mkdirSync(folder, { recursive: true });
  const program = join(kFolder, `balora_fuzz_${reader}`);
  const args = [
    ...[corpus, seedsOf(reader), `-max_total_time=${seconds}`, `-seed=${seed}`],
    ...[`-max_len=${kMostBytes}`, `-rss_limit_mb=${kMostMiB}`, '-timeout=10'],
    ...[`-artifact_prefix=${findings}`, '-print_final_stats=1', '-verbosity=0'],
  ];
  const { status, stderr } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 1 << 28 });
  const [, inputs = '0'] = /number_of_executed_units:\s*(\d+)/.exec(stderr ?? '') ?? [];
  say(`${reader}: ${inputs} inputs in ${seconds} s, seed ${seed}`);
  if (status === 0) return { passed: 1, failed: 0, assertions: Number(inputs) };
  const [, input = 'no input'] = /Test unit written to (\S+)/.exec(stderr ?? '') ?? [];
  say((stderr ?? '').split('\n').slice(-60).join('\n'));
  say(`repeat: ${program} ${input}`);
  return { passed: 0, failed: 1, failures: [`${reader}: repeat: ${program} ${input}`] };
}

/**
 * Builds and runs the fuzzers.
 * @param options seed, seconds for each reader
 * @returns counts of each; null where no clang here has libFuzzer
 */
export async function runFuzzers(options) {
  const compiler = fuzzingCompiler();
  if (compiler === null) return null;
  await build(compiler);
  return kReaders.map((reader) => runReader(reader, options));
}

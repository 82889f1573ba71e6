// What an editor shows of the options: their types and doc comments are read out of the entries, in the sources and in the
// declaration files of the package.
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { beforeAll, expect, it, vi } from 'vitest';
import { loraOptions } from '../../lib/adapters/lora_options.ts';
import { REGULARIZER_OPTIONS } from '../../lib/train/regularizers.ts';
import { trainerOptions } from '../../lib/train/schema.ts';

vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

const kRoot = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const kProbe = join(kRoot, 'lib/__probe.ts');

const { fanInFanOut: _, inferenceMode: __, ...loraInput } = loraOptions;
const kTables = {
  TrainerOptions: Object.keys(trainerOptions),
  RegularizerOptions: Object.keys(REGULARIZER_OPTIONS),
  LoraConfigInput: Object.keys(loraInput),
};
const kSource = [
  "import type { LoraConfigInput } from './adapters/config.ts';",
  "import type { RegularizerOptions } from './train/regularizers.ts';",
  "import type { TrainerOptions } from './train/trainer_options.ts';",
  ...Object.entries(kTables).map(([type, keys]) => {
    const fields = keys.map((key) => `${type}_${key}: (o: ${type}) => o.${key}`);
    return `export const of${type} = { ${fields.join(', ')} };`;
  }),
].join('\n');

let service: ts.LanguageService;
beforeAll(() => {
  const path = join(kRoot, 'tsconfig.build.json');
  const { options } = ts.getParsedCommandLineOfConfigFile(path, {}, {
    ...ts.sys,
    onUnRecoverableConfigFileDiagnostic: () => {},
  } as ts.ParseConfigFileHost) as ts.ParsedCommandLine;
  const read = (name: string) => (name === kProbe ? kSource : ts.sys.readFile(name));
  service = ts.createLanguageService({
    getScriptFileNames: () => [kProbe],
    getScriptVersion: () => '1',
    getScriptSnapshot: (name) => {
      const text = read(name);
      return text === undefined ? undefined : ts.ScriptSnapshot.fromString(text);
    },
    getCurrentDirectory: () => kRoot,
    getCompilationSettings: () => options,
    getDefaultLibFileName: (given) => ts.getDefaultLibFilePath(given),
    fileExists: (name) => name === kProbe || ts.sys.fileExists(name),
    readFile: read,
  });
});

/** Type and doc comment of an option, as an editor shows them. */
function shown(type: string, key: string): { type: string; doc: string } {
  const at = kSource.indexOf(`o.${key}`, kSource.indexOf(`${type}_${key}:`)) + 2;
  const info = service.getQuickInfoAtPosition(kProbe, at);
  return {
    type: ts.displayPartsToString(info?.displayParts),
    doc: ts.displayPartsToString(info?.documentation),
  };
}

it('shows a type that a reader understands', () => {
  expect(shown('TrainerOptions', 'learningRate').type).toMatch(
    /learningRate\?: number \| undefined$/,
  );
  expect(shown('TrainerOptions', 'maxSteps').type).toMatch(/\?: number \| null \| undefined$/);
  expect(shown('TrainerOptions', 'optim').type).toMatch(/"adamw" \| "adafactor" \| "sgd"/);
  expect(shown('TrainerOptions', 'memoryBudget').type).toMatch(/number \| "max" \| "min" \| null/);
  expect(shown('RegularizerOptions', 'svdTopK').type).toMatch(/\?: number \| undefined$/);
  expect(shown('LoraConfigInput', 'useDora').type).toMatch(/\?: boolean \| undefined$/);
});

it.each(Object.entries(kTables))('shows a doc comment of every option of %s', (type, keys) => {
  expect(keys.filter((key) => shown(type, key).doc.length < 10)).toEqual([]);
});

it('keeps the doc comments in the declaration files', () => {
  const program = service.getProgram() as ts.Program;
  const names =
    /lib\/(train\/schema|adapters\/(lora_options|methods\/\w+)|losses\/terms\/\w+|tasks\/language_model)\.ts$/;
  let text = '';
  for (const file of program.getSourceFiles().filter(({ fileName }) => names.test(fileName))) {
    program.emit(file, (_, written) => (text += written), undefined, true);
  }
  const documented = new Set(
    Array.from(text.matchAll(/\*\/\s+(?:readonly )?(\w+): /g), ([, key]) => key),
  );
  const all = Object.values(kTables).flat();
  expect(all.filter((key) => !documented.has(key))).toEqual([]);
});

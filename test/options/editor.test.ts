// Types and doc comments of the options as an editor shows them, from the sources and from the declaration files of the package.
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { beforeAll, describe, expect, it } from 'vitest';
import { loraOptions } from '../../lib/adapters/lora_options.ts';
import { generationOptions } from '../../lib/generate/options.ts';
import { REGULARIZER_OPTIONS } from '../../lib/train/regularizers.ts';
import { trainerOptions } from '../../lib/train/schema.ts';

const kRoot = resolve(dirname(fileURLToPath(import.meta.url)), '../..');

const { fanInFanOut: _, inferenceMode: __, keptKeys: ___, ...loraInput } = loraOptions;
const kTables = {
  TrainerOptions: Object.keys(trainerOptions),
  RegularizerOptions: Object.keys(REGULARIZER_OPTIONS),
  LoraConfigInput: Object.keys(loraInput),
  GenerateOptions: Object.keys(generationOptions),
};
/** A program that refers to every option once. */
const kProgram = [
  "import type { LoraConfigInput } from './adapters/config.ts';",
  "import type { GenerateOptions } from './generate/generate.ts';",
  "import type { RegularizerOptions } from './train/regularizers.ts';",
  "import type { TrainerOptions } from './train/trainer_options.ts';",
  ...Object.entries(kTables).map(([type, keys]) => {
    const fields = keys.map((key) => `${type}_${key}: (o: ${type}) => o.${key}`);
    return `export const of${type} = { ${fields.join(', ')} };`;
  }),
].join('\n');

/** A language service over a folder of kRoot with some given files and the program as probe.ts. */
function serviceOf(folder: string, given: ReadonlyMap<string, string>): ts.LanguageService {
  const path = join(kRoot, 'tsconfig.build.json');
  const { options } = ts.getParsedCommandLineOfConfigFile(path, {}, {
    ...ts.sys,
    onUnRecoverableConfigFileDiagnostic: () => {},
  } as ts.ParseConfigFileHost) as ts.ParsedCommandLine;
  const probe = probeOf(folder);
  const read = (name: string) =>
    name === probe ? kProgram : (given.get(name) ?? ts.sys.readFile(name));
  return ts.createLanguageService({
    getScriptFileNames: () => [probe],
    getScriptVersion: () => '1',
    getScriptSnapshot: (name) => {
      const text = read(name);
      return text === undefined ? undefined : ts.ScriptSnapshot.fromString(text);
    },
    getCurrentDirectory: () => kRoot,
    getCompilationSettings: () => ({ ...options, rootDir: kRoot, outDir: join(kRoot, 'dist') }),
    getDefaultLibFileName: (settings) => ts.getDefaultLibFilePath(settings),
    fileExists: (name) => name === probe || given.has(name) || ts.sys.fileExists(name),
    readFile: read,
  });
}

const probeOf = (folder: string): string => join(kRoot, folder, 'probe.ts');

/** The declaration files of a program, below `declarations`. */
function declarationsOf(program: ts.Program): Map<string, string> {
  const files = new Map<string, string>();
  const place = (name: string) =>
    name.replace(join(kRoot, 'dist/lib'), join(kRoot, 'declarations'));
  program.emit(undefined, (name, text) => files.set(place(name), text), undefined, true);
  return files;
}

const services: Record<string, ts.LanguageService> = {};
beforeAll(() => {
  services.lib = serviceOf('lib', new Map());
  const files = declarationsOf(services.lib.getProgram() as ts.Program);
  expect(files.size).toBeGreaterThan(100);
  services.declarations = serviceOf('declarations', files);
});

describe.each(['lib', 'declarations'])('in %s', (folder) => {
  /** Type and doc comment of an option, as an editor shows them. */
  const shown = (type: string, key: string): { type: string; doc: string } => {
    const at = kProgram.indexOf(`o.${key}`, kProgram.indexOf(`${type}_${key}:`)) + 2;
    const info = services[folder]?.getQuickInfoAtPosition(probeOf(folder), at);
    return {
      type: ts.displayPartsToString(info?.displayParts),
      doc: ts.displayPartsToString(info?.documentation),
    };
  };

  it('an option has a type that a reader understands', () => {
    expect(shown('TrainerOptions', 'learningRate').type).toMatch(
      /learningRate\?: number \| undefined$/,
    );
    expect(shown('TrainerOptions', 'maxSteps').type).toMatch(/\?: number \| null \| undefined$/);
    expect(shown('TrainerOptions', 'optim').type).toMatch(/"adamw" \| "adafactor" \| "sgd"/);
    expect(shown('TrainerOptions', 'memoryBudget').type).toMatch(
      /number \| "max" \| "min" \| null/,
    );
    expect(shown('RegularizerOptions', 'svdTopK').type).toMatch(/\?: number \| undefined$/);
    expect(shown('LoraConfigInput', 'useDora').type).toMatch(/\?: boolean \| undefined$/);
  });

  it.each(Object.entries(kTables))('every option of %s has its doc comment', (type, keys) => {
    expect(keys.filter((key) => shown(type, key).doc.length < 10)).toEqual([]);
  });
});

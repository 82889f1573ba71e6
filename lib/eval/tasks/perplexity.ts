/** Perplexity of texts: of any texts, or of WikiText-2's pages, by which forgetting is measured. */
import type { ItemMetrics, RollingTask, TaskMetrics } from './task.ts';

/** Perplexities by the sums over all texts. */
function summarize(items: readonly ItemMetrics[]): TaskMetrics {
  const sum = (name: string): number =>
    items.reduce((total, item) => total + (item[name] as number), 0);
  const loss = -sum('loglikelihood');
  const bytes = sum('bytes');
  return {
    word_perplexity: Math.exp(loss / sum('words')),
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
  fromText: (text) => ({ text }),
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

/** WikiText by pages, whose words and bytes are counted before the spaces around signs are removed. */
export const wikitext: RollingTask = {
  name: 'wikitext',
  version: 1,
  kind: 'rolling',
  help: "perplexity of WikiText's pages",
  fields: [['page']],
  read(fields) {
    const original = fields.text('page');
    const text = kSpacing.reduce((page, [from, to]) => page.replace(from, to), original);
    return { text, original };
  },
  summarize,
};

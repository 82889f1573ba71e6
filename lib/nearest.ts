/** Suggestions for unknown names: the known name that is most similar. */

/** The number of edits (insertion, deletion, replacement, swap of neighbours) that separate two words. */
export function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      let cost = Math.min(entry(last, j) + 1, entry(row, j - 1) + 1, entry(last, j - 1) + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        cost = Math.min(cost, entry(beforeLast, j - 2) + 1);
      }
      row.push(cost);
    }
    beforeLast = last;
    last = row;
  }
  return entry(last, b.length);
}

/** The known name that a few wrong letters separate from another one, whatever its case; null where none is so near. */
export function misspelt(name: string, known: readonly string[]): string | null {
  const plain = name.toLowerCase().trim();
  // A third of a word at most: two wrong letters turn any short word into any other.
  const near = known
    .map((word) => ({ word, edits: editDistance(plain, word) }))
    .filter(({ word, edits }) => edits <= Math.min(2, Math.floor(word.length / 3)))
    .sort((a, b) => a.edits - b.edits);
  return near[0]?.word ?? null;
}

const entry = (row: readonly number[], j: number) => row[j] as number;

/** The text ` (did you mean "x"?)`, or an empty text where no name is meant. */
export const didYouMean = (name: string | null): string =>
  name === null ? '' : ` (did you mean "${name}"?)`;

/** The most similar known name in kebab case; null where none is similar. */
export function nearest(name: string, known: readonly string[]): string | null {
  const plain = name.toLowerCase().replaceAll('_', '-');
  let best: string | null = null;
  let bestDistance = Math.max(2, Math.floor(plain.length / 2)) + 1;
  for (const candidate of known) {
    // A component of a name counts as similar to it, so `alpha` suggests `lora-alpha`.
    const isPart = candidate.split('-').includes(plain) || candidate.startsWith(`${plain}-`);
    const distance = isPart ? 1.5 : editDistance(plain, candidate);
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

// Reading the pages of the repository: where their links lead.
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));

/** The text of a page, by its path from the repository's root. */
export const pageText = (page: string): string => readFileSync(join(kRoot, page), 'utf8');

/** Its links to files of the repository, with their anchors: paths from the root. */
export function anchoredLinksOf(page: string): [path: string, anchor: string][] {
  const prose = pageText(page).replace(/^```[\s\S]*?^```|`[^`\n]*`/gm, '');
  return [...prose.matchAll(/\]\((?!https?:)([^)#]*)#?([^)]*)\)/g)].map(([, path, anchor]) => [
    path ? join(dirname(page), path) : page,
    anchor ?? '',
  ]);
}

/** The same without anchors. */
export const linksOf = (page: string): string[] => anchoredLinksOf(page).map(([path]) => path);

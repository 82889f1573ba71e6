// Reads the pages of the repository: headings, links, and code blocks.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));
const kFence = /^( *)```(.*)\n([\s\S]*?)^\1```$/gm;
const kCode = /^( *)```[\s\S]*?^\1```|`[^`]*`/gm;

/** All pages, by their paths from the repository's root. */
export const kPages = [
  ...['README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'examples/demo/README.md'],
  ...['test/README.md', 'test/fixtures/README.md', 'tools/fixtures/README.md'],
  ...['docs', 'docs/decisions'].flatMap((folder) =>
    readdirSync(join(kRoot, folder))
      .filter((name) => name.endsWith('.md'))
      .map((name) => `${folder}/${name}`),
  ),
];

/** The text of a page, by its path from the repository's root. */
export const pageText = (page: string): string => readFileSync(join(kRoot, page), 'utf8');

/** A code block of a page. */
export interface Block {
  readonly page: string;
  /** Number of its first line, from 1. */
  readonly line: number;
  /** The word after the fence; '' without one, and for an indented block. */
  readonly language: string;
  /** Its lines without their common indentation. */
  readonly text: string;
  /** The HTML comment on the line above it, which readers do not see, or ''. */
  readonly comment: string;
}

/** The fenced and the indented blocks of a page, in order. */
export function blocksOf(page: string): Block[] {
  return [...fencedBlocks(page), ...indentedBlocks(page)].sort((a, b) => a.line - b.line);
}

function fencedBlocks(page: string): Block[] {
  const text = pageText(page);
  return [...text.matchAll(kFence)].map((match) => {
    const [, indent = '', language = '', body = ''] = match;
    const above = text.slice(0, match.index);
    const comment = /<!-- ((?:(?!-->).)*) -->\n *$/.exec(above)?.[1] ?? '';
    const line = above.split('\n').length + 1;
    const flush = body.replaceAll(new RegExp(`^ {${indent.length}}`, 'gm'), '');
    return { page, line, language: language.trim(), text: flush, comment };
  });
}

/** Indented blocks: lines with four spaces after an empty line. In lists, whose text is indented, there are none. */
function indentedBlocks(page: string): Block[] {
  const lines = withoutFences(pageText(page)).split('\n');
  const blocks: Block[] = [];
  let inList = false;
  for (let i = 0; i < lines.length; i++) {
    const text = lines[i] as string;
    if (/^\S/.test(text)) inList = /^([-*]|\d+\.) /.test(text);
    if (inList || !/^ {4}\S/.test(text) || lines[i - 1] !== '') continue;
    const first = i;
    while (/^ {4}/.test(lines[i + 1] ?? '')) i++;
    const flush = lines.slice(first, i + 1).map((line) => `${line.slice(4)}\n`);
    blocks.push({ page, line: first + 1, language: '', text: flush.join(''), comment: '' });
  }
  return blocks;
}

/** The file that a block is copied from, by the comment `excerpt: PATH`. */
export const excerptOf = ({ comment }: Block): string | undefined =>
  /^excerpt: (\S+)$/.exec(comment)?.[1];

/** The new file of the repository that a block shows, by the comment `file: PATH`. */
export const addedFile = ({ comment }: Block): string | undefined =>
  /^file: (\S+)$/.exec(comment)?.[1];

/** Whether a block is JavaScript that a reader runs. */
export const isProgram = (block: Block): boolean =>
  ['js', 'ts'].includes(block.language) &&
  block.comment !== 'fragment' &&
  !addedFile(block) &&
  !excerptOf(block);

/**
 * The programs of a page. A block continues the one above where it imports nothing, or where the comment above it is `continues`.
 */
export function programsOf(page: string): { line: number; text: string }[] {
  const programs: { line: number; text: string }[] = [];
  for (const { line, text, comment } of blocksOf(page).filter(isProgram)) {
    const last = programs.at(-1);
    const continues = comment === 'continues' || !/^import /m.test(text);
    if (last && continues) last.text += `\n${text}`;
    else programs.push({ line, text });
  }
  return programs;
}

/** The text with the lines of fenced blocks emptied, so that line numbers stay. */
const withoutFences = (text: string): string =>
  text.replace(kFence, (block) => block.replaceAll(/.+/g, ''));

/** The text of a page without code blocks and spans. */
const proseOf = (page: string): string => pageText(page).replace(kCode, '');

/** The code spans of a page outside of blocks. */
export function codeSpansOf(page: string): string[] {
  return [...withoutFences(pageText(page)).matchAll(/`([^`]+)`/g)].map(([, span = '']) => span);
}

/** The anchors that GitHub makes from a page's headings: of equal ones the second ends in -1. */
export function anchorsOf(page: string): string[] {
  const seen = new Map<string, number>();
  return [...withoutFences(pageText(page)).matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) => {
    const words = heading
      .replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1')
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '');
    const anchor = words.replaceAll(' ', '-');
    const before = seen.get(anchor) ?? 0;
    seen.set(anchor, before + 1);
    return before === 0 ? anchor : `${anchor}-${before}`;
  });
}

/**
 * The links of a page to files of the repository, as paths from the root with anchors: inline links and images, reference links
 * (`[a]: b`), and HTML links.
 */
export function anchoredLinksOf(page: string): [path: string, anchor: string][] {
  const forms = [/\]\(([^)\s]+)[^)]*\)/g, /^ *\[[^\]]+\]: *(\S+)/gm, /(?:href|src)="([^"]+)"/g];
  const targets = forms.flatMap((form) =>
    [...proseOf(page).matchAll(form)].map(([, target = '']) => target),
  );
  return targets
    .filter((target) => !/^(https?|mailto):/.test(target))
    .map((target) => {
      const [path = '', anchor = ''] = target.split('#');
      return [path ? join(dirname(page), path) : page, anchor];
    });
}

/** The links of a page to files of the repository, without anchors. */
export const linksOf = (page: string): string[] => anchoredLinksOf(page).map(([path]) => path);

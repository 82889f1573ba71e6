/**
 * The tokens of an example, each marked by whether it is supervised: the view that shows whether data, template and tokenizer
 * fit together. Colours on a terminal, a table elsewhere.
 */
import type { Example } from '../data/example.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { styler } from './terminal.ts';
import { textTable } from './text_table.ts';

/** A token as one line of text: white space and control characters escaped, broken UTF-8 as bytes. */
export function tokenText(tokenizer: Tokenizer, id: number): string {
  const bytes = tokenizer.tokenBytes(id);
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    return JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"');
  } catch {
    return [...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('');
  }
}

/** Supervised tokens green, the others dim; every second token is underlined, which shows where tokens meet. */
export function colouredTokens(tokenizer: Tokenizer, { ids, supervised }: Example): string {
  const style = styler(true);
  let shown = '';
  ids.forEach((id, t) => {
    const text = tokenText(tokenizer, id);
    const colour = supervised[t] ? 'green' : 'dim';
    shown += t % 2 ? style(text, colour, 'underline') : style(text, colour);
    if (text.endsWith('\\n')) shown += '\n';
  });
  return shown;
}

/** One line a token: place, id, `*` where supervised, text. */
export function tokenTable(tokenizer: Tokenizer, { ids, supervised }: Example): string {
  const rows = Array.from(ids, (id, t) => [
    ...[String(t), String(id), supervised[t] ? '*' : ' '],
    tokenText(tokenizer, id),
  ]);
  return textTable(rows, 'rrl');
}

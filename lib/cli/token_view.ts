/**
 * The tokens of an example, each marked by whether it is supervised, to check that data, template and tokenizer fit together. A
 * terminal gets coloured text, other streams a table.
 */
import type { Example } from '../data/example.ts';
import { printableJson } from '../shown.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { styler } from './terminal.ts';
import { textTable } from './text_table.ts';

/** A token as a single line of text: white space and invisible characters are escaped, and invalid UTF-8 is shown as bytes. */
export function tokenText(tokenizer: Tokenizer, id: number): string {
  const bytes = tokenizer.tokenBytes(id);
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    return printableJson(text).slice(1, -1).replaceAll('\\"', '"');
  } catch {
    return [...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('');
  }
}

/**
 * The text of an example with supervised tokens in green and the others dim; every second token is underlined, to show where
 * tokens begin and end.
 */
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

/** A table with a line for each token: its position, its id, a `*` if it is supervised, and its text. */
export function tokenTable(tokenizer: Tokenizer, { ids, supervised }: Example): string {
  const rows = Array.from(ids, (id, t) => [
    ...[String(t), String(id), supervised[t] ? '*' : ' '],
    tokenText(tokenizer, id),
  ]);
  return textTable(rows, 'rrl');
}

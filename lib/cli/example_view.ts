/** An example of the training data as `--dry-run` prints it: its text, and what of it is trained on. */
import type { Example } from '../data/example.ts';
import { oneLine } from '../shown.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { styler } from './terminal.ts';
import { colouredTokens, tokenText } from './token_view.ts';

/** An example with its place in the data, and the label of a labelled text. */
export interface ShownExample extends Example {
  readonly where: string;
  readonly label?: string;
}

/** Marks around tokens that are trained on, where there are no colours. */
const [kOpen, kClose] = ['[[', ']]'];

/** A heading that says how what is trained on is shown, and the text of the example. */
export function exampleText(
  example: ShownExample,
  { tokenizer, colour }: { tokenizer: Tokenizer; colour: boolean },
): string {
  const style = styler(colour);
  const { where, ids, label } = example;
  const count = example.supervised.reduce((sum, one) => sum + one, 0);
  const how =
    label === undefined
      ? `${count} of ${ids.length} tokens are trained on, ${colour ? 'in green' : `in ${kOpen} ${kClose}`}`
      : `${ids.length} tokens, label ${label}`;
  const text = colour ? colouredTokens(tokenizer, example) : markedTokens(tokenizer, example);
  const heading = oneLine(`example: ${where}: ${how}`);
  return `${style(heading, 'bold')}\n${text.trimEnd()}`;
}

/** The text of an example with each run of supervised tokens between marks. */
function markedTokens(tokenizer: Tokenizer, { ids, supervised }: Example): string {
  let shown = '';
  let isInside = false;
  ids.forEach((id, t) => {
    const isSupervised = supervised[t] === 1;
    if (isSupervised !== isInside) shown += isSupervised ? kOpen : kClose;
    isInside = isSupervised;
    const text = tokenText(tokenizer, id);
    shown += text;
    if (text.endsWith('\\n')) shown += '\n';
  });
  return isInside ? `${shown}${kClose}` : shown;
}

/** The marks of turns in a chat template, found by rendering conversations. */
import type { Tokenizer } from '../text/tokenizer.ts';

/** A text that no template writes by itself. */
const kAnswer = 'balora-answer-7';

/** The special token that follows the assistant's text in the chat template; null without a template, or such a token. */
export function endOfTurn(tokenizer: Tokenizer): number | null {
  if (tokenizer.chatTemplate === null) return null;
  let rendered: string;
  try {
    rendered = tokenizer.renderChat([
      { role: 'user', content: 'question' },
      { role: 'assistant', content: kAnswer },
    ]);
  } catch {
    return null; // a template for conversations of another form
  }
  const at = rendered.lastIndexOf(kAnswer);
  if (at < 0) return null;
  const rest = rendered.slice(at + kAnswer.length);
  const [first] = tokenizer.encode(rest, { addSpecialTokens: false });
  return first !== undefined && tokenizer.specialIds.has(first) ? first : null;
}

/** The log of a server: a line for each request that has been answered. */
import { oneLine, printable } from '../shown.ts';
import type { AnswerNumbers } from './answer.ts';

/** A request that has been answered, for the log. */
export interface RequestLine {
  readonly method: string;
  readonly path: string;
  /** null: the client was gone before the end. */
  readonly status: number | null;
  readonly seconds: number;
  /** The numbers of an answer; null where there was none. */
  readonly answer: AnswerNumbers | null;
}

/** Largest number of characters of a path in the log. */
const kMostOfPath = 200;

/** A request as a line of the log. A path has neither invisible characters there nor spaces, with which it could forge fields. */
export function requestText({ method, path, status, seconds, answer }: RequestLine): string {
  const shown = printable(path, kMostOfPath).replaceAll(' ', '%20');
  const numbers =
    answer === null
      ? ''
      : `  ${oneLine(answer.model)}: ${answer.promptTokens} prompt tokens, ${answer.newTokens} new ones`;
  return `${method} ${shown} ${status ?? 'left'}  ${seconds.toFixed(2)} s${numbers}`;
}

/** Empty answers in data: the model would learn from them to end at once, so they are not trained on, and a warning says so. */
import { ArgumentError } from '../errors.ts';
import type { DataWarning } from './dataset.ts';
import type { RowSource } from './rows.ts';

/** Counts the empty answers of a data source, and remembers the first row that has one. */
export class EmptyAnswers {
  #count = 0;
  #first: number | null = null;

  /** Notes the empty answers of a row. */
  add(index: number, count = 1): void {
    this.#count += count;
    this.#first ??= index;
  }

  /** Warns about the answers that are left out, if there are any. */
  async report(
    rows: RowSource,
    { onWarning }: { onWarning?: (warning: DataWarning) => void },
  ): Promise<void> {
    if (this.#first === null) return;
    const where = await rows.where(this.#first);
    const message =
      `${this.#count} of the answers are empty and left out, since they only teach the model to say nothing (first: ${where}); ` +
      'complete or remove these rows';
    onWarning?.({ code: 'answers_empty', message });
  }

  /** The error for data in which a row may not be left out, or nothing else is left. */
  async error(rows: RowSource): Promise<ArgumentError> {
    return new ArgumentError(
      `${await rows.where(this.#first ?? 0)}: the answer is empty; complete or remove the row`,
    );
  }
}

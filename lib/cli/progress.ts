/**
 * The progress of a run. On a terminal one line at the bottom is redrawn (at most ten times a second) and messages scroll above
 * it; elsewhere there is a plain line for every log event, and nothing is ever drawn over.
 */
import type { StepRecord, TrainEvent } from '../train/types.ts';
import { evaluationLine } from './evaluation_view.ts';
import {
  fixed,
  formatBytes,
  formatSeconds,
  hasColour,
  type OutputStream,
  styler,
} from './terminal.ts';

const kRedrawMs = 100;
/** Of a terminal that does not tell (or says 0, as under a recorder). */
const kColumns = 80;

export class Progress {
  private readonly redraws: boolean;
  private readonly style: ReturnType<typeof styler>;
  private line = '';
  private drawnAt = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly stream: OutputStream,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.redraws = stream.isTTY === true && process.env.TERM !== 'dumb';
    this.style = styler(hasColour(stream));
  }

  /** Shows an event of the run. */
  show(event: TrainEvent): void {
    switch (event.type) {
      case 'step':
        this.status(stepLine(event));
        break;
      case 'log':
        if (!this.redraws) this.stream.write(`${stepLine(event)}\n`);
        break;
      case 'evaluation': {
        const line = `evaluation at step ${event.step}: ${evaluationLine(event.result)}`;
        this.message(this.style(line, 'bold'));
        break;
      }
      case 'evaluating':
        this.status(`evaluating at step ${event.step}: ${event.examples} examples`);
        break;
      case 'checkpoint':
        this.message(this.style(`checkpoint ${event.path}`, 'dim'));
        break;
      case 'warning':
        this.warn(event.message);
        break;
      default:
    }
  }

  /** A line that the next one replaces, on a terminal; elsewhere nothing. */
  status(text: string): void {
    if (this.redraws) this.draw(text);
  }

  /** A line of its own, above the progress line. */
  message(text: string): void {
    const below = this.line;
    this.clear();
    this.stream.write(`${text}\n`);
    if (below) {
      this.line = below;
      this.stream.write(below);
    }
  }

  /** `onDownload` of whatever may fetch from the Hub: a line for each file. */
  readonly download = (path: string, bytes: number): void =>
    this.message(`fetching ${path}, ${formatBytes(bytes)}`);

  /** `onProgress` of whatever makes an adapter. */
  readonly starts = (modules: number, total: number): void =>
    this.status(`starting the adapter: ${modules} of ${total} modules`);

  warn(text: string): void {
    this.message(`${this.style('warning:', 'yellow')} ${text}`);
  }

  /** Takes the progress line away. */
  clear(): void {
    if (this.line) this.stream.write('\r\u001b[K');
    this.line = '';
  }

  private draw(text: string): void {
    const time = this.now();
    if (time - this.drawnAt < kRedrawMs) return;
    this.drawnAt = time;
    // A line that wraps could not be taken back.
    const cut = text.slice(0, (this.stream.columns || kColumns) - 1);
    this.stream.write(`\r\u001b[K${cut}`);
    this.line = cut;
  }
}

/** `step 12/200  loss 1.2345  ...`: the terms that the run has, the speed and the time left. */
export function stepLine(event: {
  record: StepRecord;
  totalSteps: number;
  secondsLeft: number;
}): string {
  const { record, totalSteps, secondsLeft } = event;
  const { consistency, diversity, svd } = record;
  const own = Object.entries(record.terms ?? {}).map(([key, { value }]) => [key, value] as const);
  const terms = [...Object.entries({ consistency, diversity, svd }), ...own].flatMap(
    ([key, value]) => (value === null ? [] : [`${key} ${fixed(value)}`]),
  );
  const step = String(record.step).padStart(String(totalSteps).length);
  // What matters most stands first: a narrow terminal cuts the rest.
  return [
    `step ${step}/${totalSteps}`,
    `loss ${fixed(record.loss)}`,
    `${Math.round(record.tokensPerSecond)} tokens/s`,
    `${formatSeconds(secondsLeft)} left`,
    ...(terms.length > 0 ? [`task ${fixed(record.taskLoss)}`, ...terms] : []),
    `lr ${record.learningRate.toExponential(2)}`,
    formatBytes(record.peakRssBytes),
  ].join('  ');
}

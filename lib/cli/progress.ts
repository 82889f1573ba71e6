/**
 * The progress display of a run. On a terminal, one line at the bottom is redrawn at most ten times a second, and messages
 * scroll above it. On any other stream each log event is a line of plain text, and nothing is redrawn.
 */
import { formatBytes } from '../io/format_bytes.ts';
import { oneLine } from '../shown.ts';
import type { ChatMessage } from '../text/chat_template.ts';
import type { Sample, StepRecord, TrainEvent } from '../train/types.ts';
import { evaluationLine } from './evaluation_view.ts';
import { withFlags } from './flag_names.ts';
import {
  besideStyles,
  fixed,
  formatSeconds,
  hasColour,
  type OutputStream,
  ShownStream,
  styler,
} from './terminal.ts';
import { kTrainOptions } from './train_options.ts';

const kRedrawMs = 100;
/** The width assumed for a terminal that does not report its own (or reports 0, as under a recorder). */
const kColumns = 80;

export class Progress {
  private readonly redraws: boolean;
  private readonly stream: ShownStream;
  private readonly style: ReturnType<typeof styler>;
  private line = '';
  private drawnAt = Number.NEGATIVE_INFINITY;

  constructor(
    stream: OutputStream,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.stream = stream instanceof ShownStream ? stream : new ShownStream(stream);
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
      case 'samples':
        this.message(...samplesLines(event.step, event.samples));
        break;
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

  /** Shows a line that the next one replaces, on a terminal; does nothing on other streams. */
  status(text: string): void {
    if (this.redraws) this.draw(text);
  }

  /** Writes lines that stay, above the progress line. A line break in one of them is shown, since a name in a file may have it. */
  message(...lines: readonly string[]): void {
    const below = this.line;
    this.clear();
    this.stream.write(lines.map((line) => `${besideStyles(line, oneLine)}\n`).join(''));
    if (below) {
      this.line = below;
      this.stream.write(below);
    }
  }

  /** The `onDownload` callback of everything that may fetch from the Hub: it writes a line for each file. */
  readonly download = (path: string, bytes: number): void =>
    this.message(`downloading ${path}, ${formatBytes(bytes)}`);

  /** The `onProgress` callback for creating an adapter. */
  readonly adapterProgress = (modules: number, total: number): void =>
    this.status(`initializing the adapter: ${modules} of ${total} modules`);

  /** The `onProgress` callback of a calibration. */
  readonly calibrationProgress = (done: number, total: number): void =>
    this.status(`reading the data for the adapter's start: ${done} of ${total}`);

  /** Writes a warning, in which the names of options become flags. */
  warn(text: string): void {
    this.message(`${this.style('warning:', 'yellow')} ${withFlags(text, kTrainOptions)}`);
  }

  /** Erases the progress line. */
  clear(): void {
    if (this.line) this.erase();
    this.line = '';
  }

  private erase(): void {
    this.stream.control('\r\u001b[K');
  }

  private draw(text: string): void {
    const time = this.now();
    if (time - this.drawnAt < kRedrawMs) return;
    this.drawnAt = time;
    // The line is cut to the terminal's width, because a line that wraps cannot be erased.
    const cut = oneLine(text).slice(0, (this.stream.columns || kColumns) - 1);
    this.erase();
    this.stream.write(cut);
    this.line = cut;
  }
}

/** The characters of a prompt that are shown, from its end. */
const kShownPrompt = 60;

/** The answers of an evaluation, each below the end of its prompt. */
function samplesLines(step: number, samples: readonly Sample[]): string[] {
  return samples.flatMap(({ prompt, text }, i) => {
    const asked = typeof prompt === 'string' ? prompt : contentOf(prompt);
    const line = asked.replaceAll(/\s+/g, ' ').trim();
    const shown = line.length > kShownPrompt ? `...${line.slice(-kShownPrompt)}` : line;
    const answer = text.trim().split('\n');
    return [
      `sample ${i + 1} of ${samples.length} at step ${step}: ${shown}`,
      ...answer.map((part) => `  ${part}`),
    ];
  });
}

/** The text of the last message of a conversation; ids are shown as they are. */
function contentOf(prompt: Exclude<Sample['prompt'], string>): string {
  const last: unknown = prompt.at(-1);
  return typeof last === 'object' ? String((last as ChatMessage).content) : prompt.join(' ');
}

/** The text of the progress line, `step 12/200  loss 1.2345  ...`: the terms of the loss, the speed and the time left. */
export function stepLine(event: {
  record: StepRecord;
  totalSteps: number;
  secondsLeft: number;
}): string {
  const { record, totalSteps, secondsLeft } = event;
  const terms = Object.entries(record.terms).flatMap(([key, { value }]) =>
    value === null ? [] : [`${key} ${fixed(value)}`],
  );
  const step = String(record.step).padStart(String(totalSteps).length);
  // The most important values stand first, since a narrow terminal cuts the end of the line.
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

import { EventEmitter } from 'node:events';
import { stripVTControlCharacters } from 'node:util';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Progress, stepLine } from '../../lib/cli/progress.ts';
import { formatCount, formatSeconds, hasColour, ignoreClosedPipe } from '../../lib/cli/terminal.ts';
import { formatBytes } from '../../lib/io/format_bytes.ts';
import type { StepRecord, TrainEvent } from '../../lib/train/types.ts';

const record = (step: number, over: Partial<StepRecord> = {}): StepRecord => ({
  step,
  epoch: 0.1,
  loss: 1.23456,
  taskLoss: 1.2,
  terms: {},
  gradNorm: 1,
  learningRate: 2e-5,
  tokens: 100,
  supervisedTokens: 50,
  tokensPerSecond: 812.4,
  elapsedSeconds: 3,
  peakRssBytes: 1536 * 1024 ** 2,
  ...over,
});
const termsOf = (values: Record<string, number | null>): StepRecord['terms'] =>
  Object.fromEntries(Object.entries(values).map(([key, value]) => [key, { value, weight: 0.1 }]));
const event = (type: 'step' | 'log', step: number): TrainEvent => ({
  type,
  record: record(step),
  totalSteps: 200,
  secondsLeft: 192,
});

class Stream {
  text = '';
  constructor(
    readonly isTTY: boolean,
    readonly columns = 200,
  ) {}
  write(text: string): void {
    this.text += text;
  }
  /** The lines that a terminal would show. */
  screen(): string[] {
    const lines = [''];
    for (const part of this.text
      .split('\n')
      .flatMap((line) => ['\n', line])
      .slice(1)) {
      if (part === '\n') lines.push('');
      else {
        // Only the last text remains of a line that was cleared and written again.
        const redrawn = part.split('\r\u001b[K');
        lines[lines.length - 1] = redrawn.at(-1) as string;
      }
    }
    return lines.map(stripVTControlCharacters);
  }
}

// The tests may run in a terminal with TERM=dumb, where there are plain lines whatever the stream is.
beforeEach(() => {
  vi.stubEnv('TERM', 'xterm');
});
afterEach(() => {
  vi.unstubAllEnvs();
});

describe('stepLine', () => {
  it('shows loss, speed and time left', () => {
    expect(stepLine({ record: record(12), totalSteps: 200, secondsLeft: 192 })).toBe(
      'step  12/200  loss 1.2346  812 tokens/s  3m12s left  lr 2.00e-5  1.50 GiB',
    );
  });

  it('shows the terms that have a weight', () => {
    const line = stepLine({
      record: record(1, { terms: termsOf({ consistency: 0.5, diversity: null, svd: -1.4 }) }),
      totalSteps: 2,
      secondsLeft: 1,
    });
    expect(line).toContain('task 1.2000  consistency 0.5000  svd -1.4000');
    expect(line).not.toContain('diversity');
  });

  it('shows a divergence below 0, which is rounding, as 0', () => {
    const line = stepLine({
      record: record(1, { terms: termsOf({ consistency: -1e-9, svd: -0.00006 }) }),
      totalSteps: 2,
      secondsLeft: 1,
    });
    expect(line).toContain('consistency 0.0000  svd -0.0001');
  });
});

describe('Progress', () => {
  it('writes plain lines at log events where the stream is no terminal', () => {
    const stream = new Stream(false);
    const progress = new Progress(stream);
    for (const step of [1, 2]) {
      progress.show(event('step', step));
      progress.show(event('log', step));
    }
    progress.show({ type: 'warning', code: 'x', message: 'careful' });
    expect(stream.text).toMatch(/^step {3}1\/200 .*\nstep {3}2\/200 .*\nwarning: careful\n$/);
    expect(stream.text).not.toContain('\u001b');
    expect(stream.text).not.toContain('\r');
  });

  it('writes plain lines on a dumb terminal', () => {
    vi.stubEnv('TERM', 'dumb');
    const stream = new Stream(true);
    const progress = new Progress(stream);
    progress.show(event('step', 1));
    expect(stream.text).toBe('');
    progress.show(event('log', 1));
    expect(stream.text).toMatch(/^step {3}1\/200 .*\n$/);
    expect(stream.text).not.toContain('\u001b');
  });

  it('redraws one line on a terminal, below the messages, at a bounded rate', () => {
    let time = 0;
    const stream = new Stream(true, 40);
    const progress = new Progress(stream, () => time);
    for (let step = 1; step <= 50; step++) {
      progress.show(event('step', step));
      progress.show(event('log', step));
      time += 30;
    }
    expect(stream.text.split('\r').length - 1).toBeLessThanOrEqual(16);
    progress.show({ type: 'warning', code: 'x', message: 'careful' });
    const [first, second] = stream.screen();
    expect(first).toBe('warning: careful');
    expect(second).toMatch(/^step +\d+\/200/);
    expect((second as string).length).toBeLessThan(40);
    progress.clear();
    expect(stream.screen()).toEqual(['warning: careful', '']);
  });
});

it('Progress assumes 80 columns where a terminal reports 0', () => {
  const stream = new Stream(true, 0);
  new Progress(stream, () => 0).show(event('step', 1));
  expect(stream.screen()[0]).toMatch(/^step {3}1\/200 {2}loss 1\.2346 .{20,}/);
});

describe('terminal', () => {
  it('has colours only on terminals and unless the environment forbids them', () => {
    expect(hasColour(new Stream(true), {})).toBe(true);
    expect(hasColour(new Stream(false), {})).toBe(false);
    expect(hasColour(new Stream(true), { NO_COLOR: '1' })).toBe(false);
    expect(hasColour(new Stream(false), { FORCE_COLOR: '1' })).toBe(true);
    expect(hasColour(new Stream(true), { TERM: 'dumb' })).toBe(false);
  });

  it('ignores the error of a closed pipe, and no other', () => {
    const stream = new EventEmitter();
    ignoreClosedPipe(stream);
    const fail = (code: string) => stream.emit('error', Object.assign(new Error(code), { code }));
    expect([fail('EPIPE'), fail('EIO')]).toEqual([true, true]);
    expect(() => fail('ENOSPC')).toThrow('ENOSPC');
  });

  it('formats sizes and times for people', () => {
    expect([0, 1023, 1536, 20 * 1024 ** 2].map(formatBytes)).toEqual([
      '0 B',
      '1023 B',
      '1.50 KiB',
      '20.0 MiB',
    ]);
    expect([4.2, 59.7, 65, 3725, Number.POSITIVE_INFINITY].map(formatSeconds)).toEqual([
      '4s',
      '1m00s',
      '1m05s',
      '1h02m',
      '?',
    ]);
    expect([9999, 12_345, 12_345_678].map(formatCount)).toEqual(['9999', '12.3 k', '12.3 M']);
  });
});

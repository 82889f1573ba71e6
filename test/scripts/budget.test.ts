// The time budget of the scripts for a machine with a GPU, and their common options.
import { describe, expect, it } from 'vitest';

interface Budget {
  refusal(wanted: number): string | null;
}
interface Script {
  Budget: new (seconds: number, startedAt?: number) => Budget;
  reportOptions(args: string[]): Record<string, unknown> & { budget: Budget };
}
// The script has no types.
const path = '../../scripts/support/cuda.mjs';
const { Budget, reportOptions } = (await import(path)) as Script;

describe('Budget', () => {
  it('refuses a part that takes too long, with both numbers of seconds', () => {
    const budget = new Budget(100, Date.now() - 60_000); // 60 s ago
    expect(budget.refusal(39)).toBeNull();
    expect(budget.refusal(41)).toMatch(
      /^skipped: takes about 41 s, (39|40) s are left of --seconds/,
    );
    expect(new Budget(1, Date.now() - 60_000).refusal(5)).toMatch(/, 0 s are left/);
    expect(new Budget(Number.POSITIVE_INFINITY).refusal(1e9)).toBeNull();
  });
});

describe('reportOptions', () => {
  it('reads every option, and refuses unknown ones', () => {
    const read = reportOptions(['--seconds', '7', '--device', 'cuda:1', '--torch', 'python3']);
    expect(read).toMatchObject({ seconds: 7, device: 'cuda:1', torch: 'python3', shapes: 'all' });
    expect(read.budget.refusal(5)).toBeNull();
    expect(read.budget.refusal(8)).not.toBeNull();
    expect(reportOptions([]).budget.refusal(1e9)).toBeNull();
    for (const bad of [['--second', '7'], ['--seconds'], ['--seconds', 'x'], ['--seconds', '-1']]) {
      expect(() => reportOptions(bad)).toThrow(/usage: .*--seconds N/);
    }
  });
});

/** Least-squares fits of a measurement against a size: a power law or a straight line, whichever explains it better. */
import { ArgumentError } from '../../lib/errors.ts';
import { mean, sum } from './statistics.ts';
import type { Fit } from './types.ts';

interface Point {
  readonly x: number;
  readonly y: number;
}

/**
 * The better of y = a x^b and y = a + b x, by the variance of y that is explained; the line wins a tie.
 * @throws ArgumentError for fewer than three different x, or values that are not positive
 */
export function fitGrowth(points: readonly Point[]): Fit {
  if (new Set(points.map(({ x }) => x)).size < 3) {
    throw new ArgumentError(`fit: needs three sizes at least, got ${points.length} points`);
  }
  if (points.some(({ x, y }) => !(x > 0 && y > 0))) {
    throw new ArgumentError('fit: sizes and values must be positive');
  }
  const [line, power] = [linear(points), powerLaw(points)];
  return power.r2 > line.r2 + 1e-9 ? power : line;
}

function linear(points: readonly Point[]): Fit {
  const { a, b } = leastSquares(points);
  const r2 = explained(points, (x) => a + b * x);
  return {
    form: 'linear',
    a,
    b,
    r2,
    formula: `${digits(a)} ${b < 0 ? '-' : '+'} ${digits(Math.abs(b))} x`,
  };
}

function powerLaw(points: readonly Point[]): Fit {
  const logs = points.map(({ x, y }) => ({ x: Math.log(x), y: Math.log(y) }));
  const { a: logA, b } = leastSquares(logs);
  const a = Math.exp(logA);
  const r2 = explained(points, (x) => a * x ** b);
  return { form: 'power', a, b, r2, formula: `${digits(a)} x^${b.toFixed(2)}` };
}

/** The value of a fit at x. */
export function valueAt({ form, a, b }: Fit, x: number): number {
  return form === 'linear' ? a + b * x : a * x ** b;
}

function leastSquares(points: readonly Point[]): { a: number; b: number } {
  const [mx, my] = [mean(points.map(({ x }) => x)), mean(points.map(({ y }) => y))];
  const b =
    sum(points.map(({ x, y }) => (x - mx) * (y - my))) / sum(points.map(({ x }) => (x - mx) ** 2));
  return { a: my - b * mx, b };
}

function explained(points: readonly Point[], model: (x: number) => number): number {
  const my = mean(points.map(({ y }) => y));
  const rest = sum(points.map(({ x, y }) => (y - model(x)) ** 2));
  const all = sum(points.map(({ y }) => (y - my) ** 2));
  return all === 0 ? 1 : 1 - rest / all;
}

function digits(value: number): string {
  return String(Number(value.toPrecision(3)));
}

/** The losses of a run as a picture, in SVG, which the Hub shows in a model card. */

/** A line of the picture. */
export interface Curve {
  readonly name: string;
  /** Steps and losses, by rising steps. */
  readonly points: readonly (readonly [step: number, loss: number])[];
}

const kSize = { width: 720, height: 360 };
/** The frame of the axes. */
const kFrame = { left: 64, right: 704, top: 36, bottom: 316 };
const kColours = ['#4878a8', '#c0662b'];
const kTicks = 6;

/** Draws curves on common axes, with a legend of their names. @returns an SVG document */
export function lossPlot(curves: readonly Curve[]): string {
  const all = curves.flatMap(({ points }) => points);
  const steps = ticksOf(all.map(([step]) => step));
  const losses = ticksOf(all.map(([, loss]) => loss));
  const x = scaleOf(steps, [kFrame.left, kFrame.right]);
  const y = scaleOf(losses, [kFrame.bottom, kFrame.top]);
  const { left, right, top, bottom } = kFrame;
  const horizontal = losses.map(
    (loss) =>
      `<path d="M${left} ${y(loss)}H${right}" stroke="#ddd"/>` +
      `<text x="${left - 8}" y="${y(loss)}" text-anchor="end" dominant-baseline="middle">${short(loss)}</text>`,
  );
  const vertical = steps.map(
    (step) => `<text x="${x(step)}" y="${bottom + 20}" text-anchor="middle">${short(step)}</text>`,
  );
  const lines = curves.map(({ name, points }, i) => {
    const colour = kColours[i % kColours.length] as string;
    const at = points.map(([step, loss]) => `${x(step)},${y(loss)}`);
    const dots = points.length > kDots ? [] : at.map((point) => dot(point, colour));
    const legend = `<text x="${left + 160 * i}" y="20" fill="${colour}">${name}</text>`;
    const path = `<polyline points="${at.join(' ')}" fill="none" stroke="${colour}" stroke-width="1.5"/>`;
    return [legend, path, ...dots].join('');
  });
  const { width, height } = kSize;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
      'font-family="sans-serif" font-size="12" fill="#333">',
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    ...horizontal,
    ...vertical,
    `<path d="M${left} ${top}V${bottom}H${right}" fill="none" stroke="#888"/>`,
    `<text x="${right}" y="${height - 8}" text-anchor="end">step</text>`,
    ...lines,
    '</svg>\n',
  ].join('\n');
}

/** Curves of more points are drawn without dots. */
const kDots = 40;

function dot(point: string, colour: string): string {
  const [cx, cy] = point.split(',');
  return `<circle cx="${cx}" cy="${cy}" r="2.5" fill="${colour}"/>`;
}

/** Round numbers around values: multiples of 1, 2 or 5 times a power of ten, from the last below them to the first above. */
function ticksOf(values: readonly number[]): number[] {
  const least = values.reduce((a, b) => Math.min(a, b));
  const most = values.reduce((a, b) => Math.max(a, b));
  // Equal values are in the middle of a range of their own.
  const extent = most - least || Math.abs(most) || 1;
  const power = 10 ** Math.floor(Math.log10(extent / kTicks));
  const unit =
    power * ([1, 2, 5, 10].find((times) => (power * times * kTicks) / extent >= 1) ?? 10);
  const first = Math.floor(least / unit - (most === least ? 1 : 0));
  const last = Math.ceil(most / unit + (most === least ? 1 : 0));
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * unit);
}

/** The place of a value between the first and the last tick, in tenths of a pixel. */
function scaleOf(
  ticks: readonly number[],
  [from, to]: readonly [number, number],
): (value: number) => number {
  const [least, most] = [ticks[0] as number, ticks.at(-1) as number];
  return (value) => Math.round(10 * (from + ((value - least) / (most - least)) * (to - from))) / 10;
}

/** A tick without the rounding errors of its multiplication. */
const short = (value: number): string => `${Number(value.toPrecision(6))}`;

// A bar chart with error bars as SVG text.

const kWidth = 640;
const kBar = 26;
const kLeft = 210;
const kRight = 70;
const kTop = 52;

const escaped = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

/**
 * Horizontal bars from 0 (or the least value) to 1.
 * @param bars {label, mean, deviation, n}; deviation null: no error bar
 */
export function barChart({ title, axis, bars }) {
  const least = Math.min(0, ...bars.map(({ mean, deviation }) => mean - (deviation ?? 0)));
  const x = (value) => kLeft + ((value - least) / (1 - least)) * (kWidth - kLeft - kRight);
  const height = kTop + bars.length * (kBar + 8) + 34;
  const bottom = height - 30;
  const ticks = [0, 0.25, 0.5, 0.75, 1].map(
    (value) =>
      `<line x1="${x(value)}" x2="${x(value)}" y1="${kTop - 6}" y2="${bottom}" stroke="#ddd"/>` +
      `<text x="${x(value)}" y="${bottom + 16}" text-anchor="middle">${value}</text>`,
  );
  const rows = bars.map(({ label, mean, deviation, n }, i) => {
    const y = kTop + i * (kBar + 8);
    const middle = y + kBar / 2;
    const [from, to] = [Math.min(x(0), x(mean)), Math.max(x(0), x(mean))];
    const spread = deviation ?? 0;
    const whisker = `M${x(mean - spread)} ${middle}H${x(mean + spread)}`;
    const about = deviation === null ? `, ${n} seed` : ` ± ${deviation.toFixed(4)}, ${n} seeds`;
    return [
      `<text x="${kLeft - 10}" y="${middle + 4}" text-anchor="end">${escaped(label)}</text>`,
      `<rect x="${from}" y="${y}" width="${to - from}" height="${kBar}" fill="#4878a8"><title>${escaped(label)}: ${mean.toFixed(4)}${about}</title></rect>`,
      deviation === null ? '' : `<path d="${whisker}" stroke="#222" stroke-width="2"/>`,
      `<text x="${Math.max(to, x(mean + spread)) + 8}" y="${middle + 4}">${mean.toFixed(3)}</text>`,
    ].join('');
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${kWidth}" height="${height}" viewBox="0 0 ${kWidth} ${height}" font-family="sans-serif" font-size="12">`,
    `<rect width="${kWidth}" height="${height}" fill="#fff"/>`,
    `<text x="16" y="24" font-size="15">${escaped(title)}: ${escaped(axis)}</text>`,
    ...ticks,
    ...rows,
    '</svg>',
    '',
  ].join('\n');
}

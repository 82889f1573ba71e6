// Which implementations of the CPU's ops the C++ tests chose, from what test/native/support/choices.h writes.

/** The names of native/platform/cpu.h's features, by bit. */
const kFeatures = [
  'AVX2',
  'AVX-VNNI',
  'AVX-512',
  'AVX512-VNNI',
  'AVX512-BF16',
  'AVX512-FP16',
  'AMX',
];

/**
 * Adds up the processes of a run.
 * @param text lines "FEATURES LIST ENTRY CHOSEN" of each process, FEATURES being bits of what it lacks of the entry's needs
 * @returns `unchosen`: entries that no process chose though one had what they need, `count`: how many were chosen; `lacking`: the
 *   features without which this machine chooses some entry nowhere
 */
export function choicesOf(text) {
  const entries = new Map();
  for (const line of text.split('\n').filter(Boolean)) {
    const [features, list, entry, chosen] = line.split(' ');
    const name = `${list}/${entry}`;
    const known = entries.get(name) ?? { lacks: ~0, chosen: false };
    entries.set(name, {
      lacks: known.lacks & Number(features),
      chosen: known.chosen || chosen === '1',
    });
  }
  const rest = [...entries].filter(([, { chosen }]) => !chosen);
  const lacking = rest.reduce((bits, [, { lacks }]) => bits | lacks, 0);
  return {
    count: entries.size - rest.length,
    unchosen: rest.filter(([, { lacks }]) => lacks === 0).map(([name]) => name),
    lacking: kFeatures.filter((_, bit) => lacking & (1 << bit)),
  };
}

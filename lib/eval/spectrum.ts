/** Ranks of a matrix by its singular values; the effective rank is among the losses (lib/losses/effective_rank.ts). */

/** The stable rank sum s^2 / s_max^2 of singular values s; 0 for a zero matrix. */
export function stableRankOf(singularValues: ArrayLike<number>): number {
  const values = Array.from(singularValues);
  const largest = values.reduce((most, value) => Math.max(most, value), 0);
  return largest === 0 ? 0 : values.reduce((sum, value) => sum + (value / largest) ** 2, 0);
}

/** The participation ratio (sum s^2)^2 / sum s^4 of singular values s; 0 for a zero matrix. */
export function participationRatioOf(singularValues: ArrayLike<number>): number {
  const values = Array.from(singularValues);
  const largest = values.reduce((most, value) => Math.max(most, value), 0);
  if (largest === 0) return 0;
  // Relative to the largest, whose fourth power may be too large or too small for a double.
  const squares = values.map((value) => (value / largest) ** 2);
  const sum = squares.reduce((total, square) => total + square, 0);
  return sum ** 2 / squares.reduce((total, square) => total + square ** 2, 0);
}

/**
 * The terms of the head losses, as native/kernels/operands/head.h numbers them: columns of headRows(), and the first elements of
 * the sums of headLosses() and of its scales.
 */
export const kHeadTerm = { task: 0, consistency: 1, entropy: 2 } as const;

/** Number of columns of headRows(). */
export const kHeadTermCount = 3;

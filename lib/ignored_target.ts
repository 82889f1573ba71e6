/** The target of a row that nothing is to be learned from, PyTorch's `ignore_index`: the one fact that data, ops and losses share. */
export const kIgnoredTarget = -100;

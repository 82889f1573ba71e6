/** The target of a row that is to be ignored, PyTorch's `ignore_index`: the one value that data, ops and losses share. */
export const kIgnoredTarget = -100;

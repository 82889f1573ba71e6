/**
 * The meaning of a classification head's outputs. `single_label_classification`: one of D classes, cross-entropy; `regression`:
 * D numbers, mean squared error; `multi_label_classification`: D independent yes/no labels, binary cross-entropy.
 */
export type ProblemType =
  | 'single_label_classification'
  | 'regression'
  | 'multi_label_classification';

/** The problem types, in the spelling of config.json. */
export const kProblemTypes = [
  'single_label_classification',
  'regression',
  'multi_label_classification',
] as const satisfies readonly ProblemType[];

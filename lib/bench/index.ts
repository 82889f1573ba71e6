export { type ComparedReports, type Comparison, compareReports, readReport } from './compare.ts';
export type { BenchOptions } from './options.ts';
export { runBench } from './run.ts';
export { kShapeNames } from './shapes.ts';
export { comparisonText, reportText } from './tables.ts';
export type * from './types.ts';

/**
 * Options of the trainer that some rows switch on. Where a version lacks one, the row is reported as not available instead of being
 * measured without it.
 */
import { deviceInfo } from '../../lib/device.ts';
import { resolveRun } from '../../lib/train/resolve_run.ts';

export const kFeatures = {
  cacheTeacher: { option: { cacheTeacher: true }, flag: '--cache-teacher' },
  noGraphs: { option: { captureGraphs: false }, flag: '--no-capture-graphs' },
  int8: { option: { compute: 'int8' }, flag: '--compute int8' },
  int8TeacherDx: { option: { compute: 'teacher,dx' }, flag: '--compute teacher,dx' },
  int8Dx: { option: { compute: 'dx' }, flag: '--compute dx' },
  cacheTeacherInt8: {
    option: { cacheTeacher: true, compute: 'int8' },
    flag: '--cache-teacher --compute int8',
  },
  minimalMemory: { option: { memoryBudget: 'min' }, flag: '--memory-budget min' },
} as const;

export type Feature = keyof typeof kFeatures;

/** Whether the teacher is not run from the second epoch on. */
export const keepsTeacher = (feature: Feature | undefined): boolean =>
  feature !== undefined && 'cacheTeacher' in kFeatures[feature].option;

/** The reason why the rows of a feature cannot run; null where they can. */
export function missingFeature(feature: Feature, device = 'cpu'): string | null {
  if (feature === 'noGraphs' && device === 'cpu') return 'graphs are for GPUs';
  const { option, flag } = kFeatures[feature];
  if ('compute' in option && ['', 'plain'].includes(deviceInfo(device).int8)) {
    return 'products in int8 need a CPU with VNNI or AMX';
  }
  const key = Object.keys(option)[0] as string;
  const known = Object.values(resolveRun({})).some(
    (group) => typeof group === 'object' && group !== null && key in group,
  );
  return known ? null : `this version has no ${flag}`;
}

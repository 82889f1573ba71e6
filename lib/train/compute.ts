/** The products of a run's passes that are computed in int8 (option `compute`). */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { deviceInfo } from '../device.ts';
import type { Model } from '../models/index.ts';
import { Linear } from '../nn/index.ts';
import { mostInt8Terms } from '../runtime.ts';
import type { PassProducts } from '../tasks/task.ts';
import type { ComputeMode } from './schema.ts';

/** The products that a mode computes in int8. */
export function productsOf(mode: ComputeMode): PassProducts {
  const teacher = { forward: true };
  switch (mode) {
    case 'dtype':
      return {};
    case 'int8':
      return {
        student: { forward: true, inputGradient: true, savedActivations: true },
        teacher,
      };
    case 'teacher':
      return { teacher };
    case 'dx':
      return { student: { inputGradient: true } };
    case 'teacher,dx':
      return { student: { inputGradient: true, rotated: true }, teacher };
  }
}

/** The linears of a model by path, without its head, which losses read as a matrix or which is trained. */
function linearsOf(model: Model): [string, Linear][] {
  const isHead = (path: string): boolean =>
    model.headPaths.some((head) => path === head || path.startsWith(`${head}.`));
  return [...model.namedModules()].filter(
    (entry): entry is [string, Linear] => entry[1] instanceof Linear && !isHead(entry[0]),
  );
}

/** Bytes of the int8 copies that a mode keeps beside the weights of a model's linears, with their scales. */
export function int8CopiesBytes(mode: ComputeMode, model: Model): number {
  if (mode === 'dtype') return 0;
  let bytes = 0;
  for (const [, { outFeatures, inFeatures }] of linearsOf(model)) {
    bytes += outFeatures * inFeatures + 4 * (2 * outFeatures + inFeatures);
  }
  return bytes;
}

/** The reason why the products of a linear cannot be summed in int8; null: all can. */
function termsObstacle(model: Model): string | null {
  const most = mostInt8Terms();
  const found = linearsOf(model).find(
    ([, { inFeatures, outFeatures, weight }]) =>
      !weight.requiresGrad && Math.max(inFeatures, outFeatures) > most,
  );
  if (found === undefined) return null;
  const [path, { weight }] = found;
  return `sums in int8 have up to ${most} terms, and the weight of ${path} is (${weight.shape.join(',')})`;
}

/**
 * The reason why a run cannot compute in this mode; null if it can.
 * @param runsTeacher whether the run has a pass of its teacher
 */
export function computeObstacle(
  mode: ComputeMode,
  { kind, model }: TunedModel<Model>,
  { runsTeacher }: { runsTeacher: boolean },
): string | null {
  if (mode === 'dtype') return null;
  if (kind === 'full') return 'full fine-tuning changes all weights, and int8 is for frozen ones';
  if (model.offload !== null) {
    return 'an offloaded base keeps no copies in int8, which each product would have to make again';
  }
  if (model.dtype === 'f64') return 'a model in f64 is computed in f64';
  const info = deviceInfo(model.device);
  if (info.int8 === '') return `int8 runs on the CPU, and the device is ${info.device}`;
  if (info.int8 === 'plain') {
    return `products in int8 need AVX512-VNNI, AVX-VNNI or AMX, and this process has ${info.instructions} without them`;
  }
  const tooLong = termsObstacle(model);
  if (tooLong !== null) return tooLong;
  const needsTeacher = productsOf(mode).teacher !== undefined && mode !== 'int8';
  return needsTeacher && !runsTeacher ? 'no term of the loss reads a teacher' : null;
}

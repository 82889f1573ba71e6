/** A loss of the caller's own as the objective of a run: its context, the checks of its result, and its share of the window's loss. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { startOnDevice } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import type { NamedTensors } from '../graph.ts';
import type { Term } from '../losses/term.ts';
import { type ComputedLoss, kTask } from '../losses/term.ts';
import { mul } from '../ops/index.ts';
import { withInt8Products } from '../runtime.ts';
import { shown } from '../shown.ts';
import { type HeadModel, teacherHead, teacherStates } from '../tasks/language_model.ts';
import type {
  Inputs,
  MicroBatch,
  Objective,
  Outputs,
  PassProducts,
  StepOfWindow,
} from '../tasks/task.ts';
import { Tensor } from '../tensor.ts';
import type { LossContext, LossFunction, LossResult } from './types.ts';

/** The beginning of the keys of metrics that a loss of the caller's own reports, among the keys of terms. */
export const kCustom = 'custom.';

/** Minimises the caller's own loss, each micro-batch weighted by its share of the window's supervised rows. */
export class CustomObjective implements Objective {
  readonly terms: readonly Term[] = [];
  readonly memory = null;
  readonly maxEntropy = 0;
  /** Weight of the teacher's head; null where it is the student's. */
  readonly #teacherHead: Tensor | null;

  constructor(
    private readonly tuned: TunedModel<HeadModel<unknown>>,
    private readonly lossOf: LossFunction,
    private readonly int8: PassProducts,
  ) {
    this.#teacherHead = teacherHead(tuned);
  }

  skips({ counts }: MicroBatch): boolean {
    return counts.supervised === 0;
  }

  async teacher(): Promise<NamedTensors> {
    return {};
  }

  async entropies(): Promise<ArrayLike<number>> {
    return [];
  }

  prepare(batch: MicroBatch, step: StepOfWindow, tensors: NamedTensors): Inputs {
    return { key: '', tensors, batch, step };
  }

  forward({ batch }: Inputs): Outputs {
    const student = withInt8Products(this.int8.student, () =>
      this.tuned.model.forward(batch.data as never),
    );
    return { student, hiddenStates: new Map(), teacher: {} };
  }

  async losses(
    { batch, step }: Inputs,
    { student: hidden, teacher }: Outputs,
  ): Promise<ComputedLoss> {
    const { head } = this.tuned.model;
    const { supervised } = batch.counts;
    const context: LossContext = {
      batch: batch.data as LossContext['batch'],
      hidden,
      headWeight: head.weight,
      teacherHeadWeight: this.#teacherHead ?? head.weight,
      logitSoftcap: head.softcap > 0 ? head.softcap : null,
      teacherHidden: () => {
        // The runner frees it, even if an async loss asks for it after an await.
        teacher.states ??= teacherStates(this.tuned, batch.data, { int8: this.int8.teacher });
        return teacher.states;
      },
      ...{ step: step.step, totalSteps: step.totalSteps, supervisedRows: supervised },
      windowSupervisedRows: step.totals.supervised,
    };
    const result: unknown = await startOnDevice(hidden.device, () => this.lossOf(context));
    checkResult(result);
    const { loss, metrics = {} } = result;
    checkLoss(loss);
    const values = [[kTask, loss] as const].concat(
      Object.entries(metrics).map(([name, metric]) => [kCustom + name, metric] as never),
    );
    return {
      loss: mul(loss, supervised / step.totals.supervised),
      values: values.map(([key, tensor]) => ({ key, tensor, index: 0, toSum: null })),
      counts: batch.counts,
    };
  }

  dispose(): void {}
}

/** Checks what a loss function returned. @throws ArgumentError for anything but tensors */
function checkResult(result: unknown): asserts result is LossResult {
  const { loss, metrics = {} } = (result ?? {}) as Partial<LossResult>;
  if (!(loss instanceof Tensor)) {
    throw new ArgumentError(
      `loss: the function must return { loss }, a tensor, got ${shown(result)}`,
    );
  }
  if (typeof metrics !== 'object' || metrics === null) {
    throw new ArgumentError(`loss: metrics must be an object of tensors, got ${shown(metrics)}`);
  }
  for (const [name, value] of Object.entries(metrics)) {
    if (!(value instanceof Tensor))
      throw new ArgumentError(`loss: metrics.${name} must be a tensor, got ${shown(value)}`);
    checkOneNumber(`metrics.${name} `, value);
  }
}

function checkLoss(loss: Tensor): void {
  checkOneNumber('', loss);
  if (!loss.requiresGrad) {
    throw new ArgumentError(
      'loss: must depend on the trained parameters; compute it from hidden, outside noGrad',
    );
  }
}

function checkOneNumber(name: string, { size, shape }: Tensor): void {
  if (size === 1) return;
  throw new ArgumentError(`loss: ${name}must be one number, got the shape (${shape.join(',')})`);
}

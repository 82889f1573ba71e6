/**
 * Micro-batches with a loss that the caller wrote: the forward pass, the caller's function, the backward pass, and the release
 * of the tensors that the function made.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { startOnDevice } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import type { Term } from '../losses/term.ts';
import { kTask } from '../losses/term_sums.ts';
import { synchronize, withInt8Products, withPhase } from '../runtime.ts';
import { shown } from '../shown.ts';
import { yieldToEventLoop } from '../tasks/event_loop.ts';
import { type HeadModel, teacherHead, teacherStates } from '../tasks/language_model.ts';
import { collecting, scope, Tensor, tensor } from '../tensor.ts';
import type { PassProducts } from './compute.ts';
import type { PassInput } from './pass.ts';
import type { LossContext, LossFunction, LossResult } from './types.ts';
import type { WindowBatch } from './window.ts';

/** Computes micro-batches by the caller's own loss, each weighted by its share of the window's supervised rows. */
export class UserLossPasses {
  readonly terms: readonly Term[] = [];
  readonly loss = null;
  readonly graphs = null;
  /** Metrics that the function has reported in the window so far; null where it reported none. */
  custom: Record<string, number> | null = null;
  /** Weight of the teacher's head; null where it is the student's. */
  readonly #teacherHead: Tensor | null;

  constructor(
    private readonly tuned: TunedModel<HeadModel<unknown>>,
    private readonly lossOf: LossFunction,
    private readonly int8: PassProducts,
  ) {
    this.#teacherHead = teacherHead(tuned);
  }

  begin(): void {
    this.custom = null;
  }

  end(): void {}

  async run(micro: WindowBatch, { totals, at, sums }: PassInput): Promise<void> {
    const { batch, counts } = micro;
    if (counts.supervised === 0) return;
    const { tuned } = this;
    const share = counts.supervised / totals.supervised;
    const made = new Set<Tensor>();
    try {
      tuned.trainingPass({ step: at.step, microBatch: micro.index });
      const hidden = withPhase('forward', () =>
        withInt8Products(this.int8.student, () => tuned.model.forward(batch as never)),
      );
      made.add(hidden);
      await yieldToEventLoop();
      let teacher: Tensor | null = null;
      const { head } = tuned.model;
      const context: LossContext = {
        batch: batch as LossContext['batch'],
        hidden,
        headWeight: head.weight,
        teacherHeadWeight: this.#teacherHead ?? head.weight,
        logitSoftcap: head.softcap > 0 ? head.softcap : null,
        teacherHidden: () => {
          teacher ??= teacherStates(tuned, batch, { int8: this.int8.teacher });
          made.add(teacher); // so that it is freed even if an async loss asks for it after an await
          return teacher;
        },
        ...at,
        supervisedRows: counts.supervised,
        windowSupervisedRows: totals.supervised,
      };
      const result: unknown = await withPhase('losses', () =>
        collecting(made, () => startOnDevice(hidden.device, () => this.lossOf(context))),
      );
      checkResult(result);
      const { loss, metrics = {} } = result;
      const results = new Set([hidden, loss, ...Object.values(metrics)]);
      for (const value of made) if (!results.has(value)) value.dispose(); // the tape still holds those it needs
      for (const value of results) made.add(value);
      checkLoss(loss);
      backwardOf(loss, share);
      await this.#count({ loss, metrics, share, micro, sums });
    } finally {
      tuned.trainingPass(null);
      for (const value of made) value.dispose();
    }
  }

  dispose(): void {}

  async #count(result: {
    loss: Tensor;
    metrics: Readonly<Record<string, Tensor>>;
    share: number;
    micro: WindowBatch;
    sums: PassInput['sums'];
  }): Promise<void> {
    const { loss, metrics, share, micro, sums } = result;
    sums.add({
      loss: null,
      values: [{ key: kTask, tensor: loss, index: 0, toSum: null }],
      counts: micro.counts,
    });
    for (const [label, value] of Object.entries(metrics)) {
      this.custom ??= {};
      this.custom[label] = (this.custom[label] ?? 0) + (await value.item()) * share;
    }
    await synchronize();
  }
}

/** Runs the backward pass of share * loss. */
function backwardOf(loss: Tensor, share: number): void {
  withPhase('backward', () =>
    scope(() => {
      const { dtype, shape, device } = loss;
      loss.backward(tensor([share], { dtype, shape, device }));
    }),
  );
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
    if (value instanceof Tensor) continue;
    throw new ArgumentError(`loss: metrics.${name} must be a tensor, got ${shown(value)}`);
  }
}

function checkLoss(loss: Tensor): void {
  if (loss.size !== 1) {
    throw new ArgumentError(`loss: must be one number, got the shape (${loss.shape.join(',')})`);
  }
  if (!loss.requiresGrad) {
    throw new ArgumentError(
      'loss: must depend on the trained parameters; compute it from hidden, outside noGrad',
    );
  }
}

/**
 * The step of a loss that the user wrote: forward, the user's function, backward, and the memory of what the function made.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { startOnDevice } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import { withPhase } from '../runtime.ts';
import { collecting, scope, type Tensor, tensor } from '../tensor.ts';
import { yieldToEventLoop } from './events.ts';
import type { Objective, WindowInput } from './objective.ts';
import { type CombinedTerms, customTerms } from './record.ts';
import { teach, teacherHead } from './teacher.ts';
import type { Batch, LossContext, LossFunction } from './types.ts';

/** A loss of the user's, counted with each micro-batch's share of supervised rows. */
export class CustomObjective implements Objective {
  readonly graphs = null;
  /** null: the student's. */
  private readonly teacherHead: Tensor | null;

  constructor(
    tuned: TunedModel,
    private readonly loss: LossFunction,
  ) {
    this.teacherHead = teacherHead(tuned);
  }

  async accumulate(input: WindowInput): Promise<CombinedTerms | null> {
    const terms = customTerms();
    for (const [index, { batch, counts }] of input.window.batches.entries()) {
      if (input.signal?.aborted) return null;
      if (counts.supervised === 0) continue;
      await this.microBatch(input, { batch, index, supervised: counts.supervised, terms });
    }
    return terms.combined();
  }

  private async microBatch(
    { tuned, window, step, totalSteps }: WindowInput,
    { batch, index, supervised, terms }: CustomMicroBatch,
  ): Promise<void> {
    const share = supervised / window.totals.supervised;
    const made = new Set<Tensor>();
    try {
      tuned.trainingPass({ step, microBatch: index });
      const hidden = withPhase('forward', () => tuned.model.forward(batch));
      made.add(hidden);
      await yieldToEventLoop();
      let teacher: Tensor | null = null;
      const { head } = tuned.model;
      const context: LossContext = {
        batch,
        hidden,
        headWeight: head.weight,
        teacherHeadWeight: this.teacherHead ?? head.weight,
        logitSoftcap: head.softcap > 0 ? head.softcap : null,
        teacherHidden: () => {
          teacher ??= teach(tuned, batch);
          made.add(teacher); // also where an async loss asks after an await
          return teacher;
        },
        step,
        totalSteps,
        supervisedRows: supervised,
        windowSupervisedRows: window.totals.supervised,
      };
      const { loss, metrics = {} } = await withPhase('losses', () =>
        collecting(made, () => startOnDevice(hidden.device, () => this.loss(context))),
      );
      const results = new Set([hidden, loss, ...Object.values(metrics)]);
      for (const value of made) if (!results.has(value)) value.dispose(); // the tape holds what it needs
      for (const value of results) made.add(value);
      checkLoss(loss);
      backwardOf(loss, share);
      terms.addLoss(await loss.item(), share);
      for (const [label, value] of Object.entries(metrics)) {
        terms.addMetric(label, await value.item(), share);
      }
    } finally {
      tuned.trainingPass(null);
      for (const value of made) value.dispose();
    }
  }

  dispose(): void {}
}

interface CustomMicroBatch {
  readonly batch: Batch;
  /** Within its window. */
  readonly index: number;
  readonly supervised: number;
  readonly terms: ReturnType<typeof customTerms>;
}

/** Adds the gradient of share * loss. */
function backwardOf(loss: Tensor, share: number): void {
  withPhase('backward', () =>
    scope(() => {
      const { dtype, shape, device } = loss;
      loss.backward(tensor([share], { dtype, shape, device }));
    }),
  );
}

function checkLoss(loss: Tensor): void {
  if (loss.size !== 1) {
    throw new ArgumentError(`loss: must be one number, got the shape (${loss.shape.join(',')})`);
  }
  if (!loss.requiresGrad) {
    throw new ArgumentError('loss: is not attached to the tape; did the function run in noGrad?');
  }
}

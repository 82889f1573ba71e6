/** Micro-batches computed op by op: the teacher's pass, the forward pass, the losses and the backward pass. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { Term } from '../losses/term.ts';
import type { Model } from '../models/index.ts';
import { type Int8Products, synchronize, withInt8Products, withPhase } from '../runtime.ts';
import { yieldToEventLoop } from '../tasks/event_loop.ts';
import type { TaskLoss } from '../tasks/task.ts';
import { scope } from '../tensor.ts';
import { isEmpty, type PassInput, releaseTeacher } from './pass.ts';
import type { WindowBatch } from './window.ts';

/** Computes micro-batches op by op. */
export class PlainPasses {
  readonly terms: readonly Term[];
  readonly graphs = null;

  constructor(
    private readonly tuned: TunedModel<Model>,
    readonly loss: TaskLoss,
    private readonly int8?: Int8Products,
  ) {
    this.terms = loss.terms;
  }

  begin(): void {}
  end(): void {}

  /**
   * Computes one micro-batch: the teacher's pass, the forward pass, the losses and the backward pass. A graph replays the
   * same operations.
   */
  async run(micro: WindowBatch, { weights, totals, at, sums }: PassInput): Promise<void> {
    if (isEmpty(micro)) return; // no term reads any of its rows
    const { tuned, loss } = this;
    if (micro.teacher === null && loss.terms.some(({ teacher }) => teacher)) {
      micro.teacher = await loss.runTeacher(micro, { step: at.step, microBatch: micro.index });
    }
    const made: { dispose(): void }[] = [];
    try {
      tuned.trainingPass({ step: at.step, microBatch: micro.index });
      const student = withPhase('forward', () =>
        withInt8Products(this.int8, () => loss.forward(micro)),
      );
      made.push(student.outputs, ...student.hiddenStates.values());
      await yieldToEventLoop();
      scope(() => {
        const { teacher } = micro;
        const result = withPhase('losses', () =>
          loss.compute({ micro, student, teacher, weights, totals, at }),
        );
        sums.add(result);
        withPhase('backward', () => result.loss?.backward());
      });
    } finally {
      tuned.trainingPass(null);
      for (const tensor of made) tensor.dispose();
    }
    await synchronize();
    releaseTeacher(micro, loss);
  }

  dispose(): void {
    this.loss.dispose();
  }
}

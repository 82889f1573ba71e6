/** What a loss reads of the teacher: its hidden states, and the head that turns them into logits. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { withPhase } from '../runtime.ts';
import { noGrad, type Tensor } from '../tensor.ts';
import type { Batch } from './types.ts';

/** The teacher's hidden states: (N,C), or (M,C) where M rows are asked for. */
export function teach(tuned: TunedModel, batch: Batch, rows?: Int32Array): Tensor {
  return withPhase('teacher', () =>
    tuned.withTeacher((model) => noGrad(() => model.forward(batch, { rows }))),
  );
}

/** The teacher's own head where it is another than the student's: the head is trained, or saved with the adapter. */
export function teacherHead(tuned: TunedModel): Tensor | null {
  if (!tuned.hasTeacher) return null;
  const { weight } = tuned.withTeacher((teacher) => teacher.head);
  return weight === tuned.model.head.weight ? null : weight;
}

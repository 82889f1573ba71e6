/** Computes the gradients and terms of single windows without a trainer. */
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import type { Model } from '../../lib/models/index.ts';
import { taskOf } from '../../lib/tasks/list.ts';
import type { RegularizerOptions } from '../../lib/train/regularizers.ts';
import { resolveRun } from '../../lib/train/resolve_run.ts';
import { Runner } from '../../lib/train/runner.ts';
import { accumulateWindow } from '../../lib/train/step.ts';
import type { Window } from '../../lib/train/window.ts';
import { termValuesOf } from './run_numbers.ts';
import { tinySource } from './tiny_model.ts';

/** The terms of a window in one object, as in a record. */
interface FlatTerms {
  readonly loss: number;
  readonly taskLoss: number;
  readonly consistency: number | null;
  readonly diversity: number | null;
  readonly svd: number | null;
}

/** A function that computes windows of a tuned model and leaves the gradients in its parameters. */
export function accumulator(tuned: TunedModel<Model>, regularizers: RegularizerOptions = {}) {
  const task = taskOf(tuned.model);
  const options = resolveRun({ regularizers }, { task: task.name });
  const input = { tuned, data: tinySource([]) as never };
  const runner = new Runner(input, options, { captureGraphs: false });
  return {
    async accumulate(window: Window<never> | Window, totalSteps = 1): Promise<FlatTerms> {
      const at = { step: 0, totalSteps };
      const terms = await accumulateWindow({ runner, signal: undefined }, window as Window, at);
      return { loss: terms.loss, taskLoss: terms.taskLoss, ...termValuesOf(terms) };
    },
    dispose: () => runner.dispose(),
  };
}

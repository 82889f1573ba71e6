/**
 * The computation of a run's micro-batches, whatever they are trained for and in whichever way: the teacher, the inputs, the forward pass,
 * the losses and the backward pass. With graphs, what follows the inputs is recorded once for each shape, and launched from then on.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { NamedTensors } from '../graph.ts';
import type { StepOfRun, Term, TermNote } from '../losses/term.ts';
import { TermSums } from '../losses/term.ts';
import type { Model } from '../models/index.ts';
import { synchronize, withPhase, yieldToEventLoop } from '../runtime.ts';
import { taskOf } from '../tasks/list.ts';
import type {
  Inputs,
  LossSettings,
  MicroBatch,
  Objective,
  Outputs,
  StepOfWindow,
} from '../tasks/task.ts';
import { collecting, scope, type Tensor } from '../tensor.ts';
import { productsOf } from './compute.ts';
import { CustomObjective } from './custom_objective.ts';
import { StepGraphs } from './graphs.ts';
import type { ResolvedRun } from './resolve_run.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { LossFunction } from './types.ts';
import type { Window } from './window.ts';

/** Runs micro-batches: adds their gradients to the parameters', and gives the values of their terms. */
export class Runner {
  readonly terms: readonly Term[];
  readonly objective: Objective;
  /** null: op by op. */
  readonly graphs: StepGraphs | null;
  readonly #tuned: TunedModel<Model>;
  /** Outputs of the teacher that were needed before the first pass of a window. */
  readonly #early = new Map<MicroBatch, NamedTensors>();
  #step: StepOfWindow | null = null;

  constructor(input: AnyTrainerOptions, options: ResolvedRun, resources: PassResources) {
    this.#tuned = input.tuned;
    this.objective = objectiveOf(input, options, resources);
    this.terms = this.objective.terms;
    this.graphs = resources.captureGraphs ? new StepGraphs(input.tuned) : null;
  }

  /** Begins a window and returns the weights of its terms. Where one depends on the teacher's entropy, the teacher runs on all of it. */
  async begin(
    { batches, totals }: Pick<Window, 'batches' | 'totals'>,
    at: StepOfRun,
    signal?: AbortSignal,
  ): Promise<Readonly<Record<string, number>>> {
    const reads = this.terms.some(({ readsTeacherEntropy }) => readsTeacherEntropy);
    const teacherEntropy = reads ? await this.#teacherEntropy(batches, at, signal) : null;
    const weights = Object.fromEntries(
      this.terms.map((term) => [term.key, term.weightAt({ ...at, teacherEntropy })]),
    );
    this.#step = { ...at, weights, totals };
    this.graphs?.gradients.begin();
    const own = this.#tuned.methodTraining?.term ?? null;
    return own === null ? weights : { ...weights, [own.key]: own.weight };
  }

  /** Runs a micro-batch of the window. */
  async run(batch: MicroBatch): Promise<TermSums> {
    const { objective, graphs } = this;
    const sums = new TermSums(this.terms);
    if (objective.skips(batch)) return sums;
    const step = this.#step as StepOfWindow;
    const teacher = this.#early.get(batch) ?? (await objective.teacher(batch, step));
    this.#early.delete(batch);
    const inputs = objective.prepare(batch, step, teacher);
    try {
      if (graphs === null) await this.#runOps(inputs, sums);
      else graphs.run(this.#tuned, objective, { inputs, sums });
      await synchronize();
    } catch (error) {
      sums.dispose();
      throw error;
    } finally {
      if (graphs === null) disposeAll(Object.values(inputs.tensors));
    }
    return sums;
  }

  /** Ends a window with the method's own term, where it has one: its gradients are added once for the window. */
  end(): TermSums {
    const sums = new TermSums([]);
    const { methodTraining } = this.#tuned;
    const { gradients } = this.graphs ?? {};
    const key = methodTraining?.term?.key;
    if (methodTraining && key !== undefined) {
      const add = () => withPhase('losses', () => methodTraining.addTerm());
      const tensor = gradients ? gradients.reach(add) : add();
      const { totals: counts } = this.#step as StepOfWindow;
      sums.add({ values: [{ key, tensor, index: 0, toSum: null }], counts });
      tensor.dispose();
    }
    gradients?.end();
    return sums;
  }

  /** Frees what a window left that was not run to its end. */
  abandon(): void {
    for (const teacher of this.#early.values()) disposeAll(Object.values(teacher));
    this.#early.clear();
  }

  dispose(): void {
    this.abandon();
    this.graphs?.dispose();
    this.objective.dispose();
  }

  /** Enqueues a pass op by op, in phases, between which other work of the process has its turn. */
  async #runOps(inputs: Inputs, sums: TermSums): Promise<void> {
    const tuned = this.#tuned;
    const { objective } = this;
    const made = new Set<Tensor>();
    let outputs: Outputs | null = null;
    try {
      tuned.trainingPass({ step: inputs.step.step, microBatch: inputs.batch.index });
      const forward = withPhase('forward', () => objective.forward(inputs));
      outputs = forward;
      await yieldToEventLoop();
      const { loss, ...values } = await withPhase('losses', () =>
        collecting(made, () => objective.losses(inputs, forward)),
      );
      for (const { tensor } of values.values) made.add(tensor);
      if (loss !== null) made.add(loss);
      sums.add(values);
      for (const tensor of made) if (tensor !== loss) tensor.dispose(); // the tape holds those that it needs
      withPhase('backward', () => scope(() => loss?.backward()));
    } finally {
      tuned.trainingPass(null);
      const {
        student = null,
        hiddenStates = new Map<number, Tensor>(),
        teacher = {},
      } = outputs ?? {};
      disposeAll([...made, student, ...hiddenStates.values()]);
      disposeAll(Object.values(teacher));
    }
  }

  /** The mean entropy of the teacher over the window's regularized rows, as a share of the largest one. */
  async #teacherEntropy(
    batches: readonly MicroBatch[],
    at: StepOfRun,
    signal?: AbortSignal,
  ): Promise<number> {
    const { objective } = this;
    let [sum, rows] = [0, 0];
    for (const batch of batches) {
      signal?.throwIfAborted();
      if (objective.skips(batch)) continue;
      const teacher = await objective.teacher(batch, at);
      this.#early.set(batch, teacher);
      const entropies = await objective.entropies(teacher, batch);
      for (const entropy of Array.from(entropies)) sum += entropy;
      rows += entropies.length;
    }
    const mean = rows > 0 ? sum / rows : 0;
    return objective.maxEntropy > 0 ? mean / objective.maxEntropy : 0;
  }
}

function disposeAll(tensors: readonly (Tensor | null)[]): void {
  for (const tensor of tensors) tensor?.dispose();
}

/** Settings for the passes of a run that are not options of its loss. */
export interface PassResources
  extends Pick<LossSettings, 'chunkBytes' | 'teacherCache' | 'teacherIdentity'> {
  readonly captureGraphs: boolean;
  readonly onNote?: (note: TermNote) => void;
}

/** Makes the objective of a run: its task's, or the caller's own loss. */
export function objectiveOf(
  { tuned, loss }: AnyTrainerOptions,
  { regularizers, seed, terms, resources: { compute } }: ResolvedRun,
  { captureGraphs: graphs, ...resources }: PassResources,
): Objective {
  const int8 = productsOf(compute);
  if (loss !== undefined) {
    return new CustomObjective(tuned as never, loss as LossFunction, int8);
  }
  const task = taskOf(tuned.model);
  return task.objective(tuned, {
    ...{ ...resources, graphs, terms, seed, int8, regularizers: { ...regularizers } },
  });
}

/** Makes the function that selects and counts the rows of a batch. */
export function selectorOf(
  model: Model,
  { regularizers }: Pick<ResolvedRun, 'regularizers'>,
): (data: unknown) => Omit<MicroBatch, 'index'> {
  const task = taskOf(model);
  return (data) => task.select(data, { ...regularizers });
}

/** Scoring of one model on one task, with its records and its programs. */
import { join } from 'node:path';
import type { AdapterModel } from '../adapters/adapter_model.ts';
import { BATCH_SIZES } from '../data/data_options.ts';
import { ArgumentError } from '../errors.ts';
import { kInvalidAnswer } from '../eval/answers.ts';
import { confidenceIntervals } from '../eval/bootstrap.ts';
import { predictionCollapse, recordedCollapse } from '../eval/collapse.ts';
import { adapterIntruders } from '../eval/intruders.ts';
import type { ScoredModel } from '../eval/loglikelihood.ts';
import type { CodeRunner } from '../eval/run_code.ts';
import { runPrograms, samplesOf } from '../eval/run_programs.ts';
import { scoreItems, summarize } from '../eval/score.ts';
import type { ItemRecord } from '../eval/scoring.ts';
import {
  type CodeTask,
  isCodeTask,
  type ScoringTask,
  type TaskMetrics,
} from '../eval/tasks/task.ts';
import { writeFileAtomic } from '../io/files.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { EvaluateSettings } from './evaluate_options.ts';
import { ItemRecords } from './item_records.ts';
import type { ScoredNumber, TaskScore } from './score_view.ts';
import type { RunContext } from './tasks/cli_task.ts';

/** A task with its items, which have been read. */
export interface PreparedTask {
  readonly task: ScoringTask;
  readonly items: readonly never[];
  readonly examples: readonly never[];
  /** Digests of the files. */
  readonly data: string;
}

/** A model that is scored. */
export interface Candidate {
  /** The name that its results have. */
  readonly name: string;
  /** The end of the names of its files of records, behind the task's. */
  readonly suffix: string;
  readonly scored: ScoredModel;
  /** Digest of its weights. */
  readonly digest: string;
}

/** The context that the scoring of all models and tasks has in common. */
export interface ScoreContext extends RunContext {
  readonly tokenizer: Tokenizer;
  readonly settings: EvaluateSettings;
  /** Runs programs; null: they are not run. */
  readonly runner: CodeRunner | null;
}

/** Scores one model on one task. Records that the output folder has already are not computed again. */
export async function scoreTask(
  candidate: Candidate,
  prepared: PreparedTask,
  context: ScoreContext,
): Promise<TaskScore> {
  const begun = performance.now();
  const { task, items } = prepared;
  const { settings, signal, progress, tokenizer } = context;
  const records = await recordsOf(candidate, prepared, context);
  const unanswered = 'extract' in task ? records.filter(isUnanswered).length : undefined;
  if (unanswered) {
    progress.message(
      `${task.name} (${candidate.name}): ${unanswered} of ${records.length} outputs have no answer`,
    );
  }
  let collapse: TaskMetrics | undefined;
  if (settings.compare !== undefined && task.kind === 'rolling') {
    progress.status(`${task.name} (${candidate.name}): entropy and rank`);
    collapse = await predictionCollapse(candidate.scored, items, { tokenizer, signal });
  } else if (settings.compare !== undefined) collapse = recordedCollapse(task, records);
  return {
    ...{ model: candidate.name, task: task.name, version: task.version, items: records.length },
    cutItems: records.filter(({ isCut }) => isCut).length,
    unanswered,
    metrics: await numbersOf(task, records, signal),
    collapse,
    seconds: (performance.now() - begun) / 1000,
  };
}

function isUnanswered({ extracted = {} }: ItemRecord): boolean {
  return Object.values(extracted).every((one) => one === null || one === kInvalidAnswer);
}

/** The records of all items in order: those that exist, and those that are missing. */
async function recordsOf(
  candidate: Candidate,
  prepared: PreparedTask,
  context: ScoreContext,
): Promise<readonly ItemRecord[]> {
  const { name, scored } = candidate;
  const { task, items, examples } = prepared;
  const { tokenizer, settings, progress, signal } = context;
  const { numFewshot, maxNewTokens } = settings;
  const { perDeviceEvalBatchSize: batchSize = BATCH_SIZES.command } = settings;
  const kept = await openRecords(candidate, prepared, settings);
  const all = new Map<number, ItemRecord>(
    [...(kept?.done ?? [])].filter(([index]) => index < items.length),
  );
  const ordered = () => [...all.values()].sort((a, b) => a.index - b.index);
  const resumed = all.size;
  const add = async (record: ItemRecord): Promise<void> => {
    await kept?.add(record);
    all.set(record.index, record);
  };
  try {
    const found = scoreItems(scored, task, items, {
      ...{ tokenizer, examples, numFewshot, maxNewTokens, signal },
      ...{ batchSize, skip: new Set(all.keys()) },
      onCut: (cut) =>
        progress.warn(
          `${task.name}: ${cut} of ${items.length} prompts are longer than the context of the model and lack their beginning`,
        ),
    });
    for await (const record of found) {
      await add(record);
      progress.status(`${task.name} (${name}): ${all.size} of ${items.length} items`);
    }
    if (resumed > 0) progress.message(`${task.name}: ${resumed} items were scored before`);
    if (isCodeTask(task))
      await finishPrograms(candidate, { ...prepared, task, ordered, add }, context);
  } finally {
    await kept?.close();
  }
  return ordered();
}

function openRecords(
  { suffix, digest }: Candidate,
  { task, data }: PreparedTask,
  { output, numFewshot, maxNewTokens, dtype = 'f32' }: EvaluateSettings,
): Promise<ItemRecords> | null {
  if (output === undefined) return null;
  const { name, version, definition } = task;
  return ItemRecords.open(output, name + suffix, {
    ...{ task: name, version, model: digest, data, dtype },
    ...{ numFewshot: numFewshot ?? null, maxNewTokens: maxNewTokens ?? null },
    ...(definition !== undefined && { definition }),
  });
}

/** Writes the file of samples, and runs those programs that have not been run, if that is allowed. */
async function finishPrograms(
  { name, suffix }: Candidate,
  {
    task,
    items,
    ordered,
    add,
  }: {
    task: CodeTask;
    items: readonly never[];
    ordered: () => readonly ItemRecord[];
    add: (record: ItemRecord) => Promise<void>;
  },
  { settings, runner, progress, signal }: ScoreContext,
): Promise<void> {
  const path = join(settings.output as string, `${task.name}${suffix}.samples.jsonl`);
  const samples = samplesOf(task, items, ordered());
  await writeFileAtomic(path, samples.map((one) => `${JSON.stringify(one)}\n`).join(''));
  if (runner === null) {
    progress.message(
      `${task.name} (${name}): the programs are in ${path}; they were not run (--allow-code-execution runs them)`,
    );
    return;
  }
  let run = 0;
  for await (const record of runPrograms(task, items, ordered(), { runner, signal })) {
    await add(record);
    progress.status(`${task.name} (${name}): ${++run} programs run`);
  }
}

/** The intruder dimensions of an adapter, in the form of a task's result whose items are the adapted modules. */
export async function scoreWeights(
  { name }: Candidate,
  tuned: AdapterModel,
  { progress, signal }: RunContext,
): Promise<TaskScore> {
  const begun = performance.now();
  const { count, modules } = await adapterIntruders(tuned, {
    signal,
    onProgress: (done, all) => progress.status(`weights (${name}): ${done} of ${all} modules`),
  });
  return {
    ...{ model: name, task: 'weights', version: 1, items: Object.keys(modules).length },
    ...{ cutItems: 0, metrics: { intruder_dimensions: { value: count, interval: null } } },
    seconds: (performance.now() - begun) / 1000,
  };
}

/** The numbers of a task and their intervals, by the records of its items in order. */
async function numbersOf(
  task: ScoringTask,
  records: readonly ItemRecord[],
  signal: AbortSignal,
): Promise<Readonly<Record<string, ScoredNumber>>> {
  const values = summarize(task, records);
  const intervals = await confidenceIntervals(records, (some) => summarize(task, some), { signal });
  return Object.fromEntries(
    Object.entries(values).map(([key, value]) => [
      key,
      { value, interval: intervals[key] ?? null },
    ]),
  );
}

/** Refuses a task that writes a file of samples, where there is no folder for it. @throws ArgumentError */
export function checkHasOutput(task: ScoringTask, { output }: EvaluateSettings): void {
  if (output !== undefined || !isCodeTask(task)) return;
  throw new ArgumentError(`${task.name} writes a file of programs; say where with --output`);
}

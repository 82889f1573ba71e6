/** `balora evaluate --tasks`: scores a language model on benchmarks, with an adapter or without, or both side by side. */
import { createHash } from 'node:crypto';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { ArgumentError } from '../errors.ts';
import { confidenceIntervals } from '../eval/bootstrap.ts';
import type { ScoredModel } from '../eval/loglikelihood.ts';
import { scoreItems, summarize } from '../eval/score.ts';
import type { ItemRecord } from '../eval/scoring.ts';
import { readItems } from '../eval/task_data.ts';
import { type DataPart, findTaskFile } from '../eval/task_files.ts';
import { scoringTask } from '../eval/tasks/registry.ts';
import type { ScoringTask } from '../eval/tasks/task.ts';
import { digestOfFile } from '../io/checksums.ts';
import { baseDigest, baseSummary } from '../models/base_digest.ts';
import type { CausalLM } from '../models/index.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import {
  type EvaluateSettings,
  kEvalBatchSize,
  kEvaluateOptions,
  kScoreOptions,
} from './evaluate_options.ts';
import { ItemRecords } from './item_records.ts';
import { adapterOptions, loadOptions, showWarnings } from './load.ts';
import { flagOf } from './option_table.ts';
import { scoreTable, type TaskScore } from './score_view.ts';
import type { RunContext } from './tasks/cli_task.ts';
import { cliTaskOf } from './tasks/list.ts';
import { kModelOptions } from './train_options.ts';

/** The options that have a meaning beside --tasks. */
const kUsed = new Set([
  ...Object.keys({ ...kScoreOptions, ...kModelOptions }),
  ...['task', 'adapter', 'data', 'json', 'perDeviceEvalBatchSize'],
]);

/**
 * Checks that the options go together: those of benchmarks need --tasks, beside which others have no meaning.
 * @throws ArgumentError naming the option
 */
export function checkScoreOptions(settings: EvaluateSettings): void {
  const given = Object.keys(kEvaluateOptions).filter(
    (key) => settings[key as keyof EvaluateSettings] !== undefined,
  );
  if (settings.data === undefined) {
    throw new ArgumentError(`--data is required (${kEvaluateOptions.data.help})`);
  }
  if (settings.tasks === undefined) {
    const own = given.find((key) => Object.hasOwn(kScoreOptions, key));
    if (own === undefined) return;
    throw new ArgumentError(`${flagOf(own)} needs --tasks`);
  }
  const foreign = given.find((key) => !kUsed.has(key));
  if (foreign !== undefined) {
    throw new ArgumentError(`${flagOf(foreign)} has no meaning beside --tasks; leave it out`);
  }
  if (settings.task !== undefined && settings.task !== 'causal-lm') {
    throw new ArgumentError('--tasks is for causal language models; leave --task out');
  }
  if (settings.base && settings.adapter === undefined) {
    throw new ArgumentError('--base needs --adapter: without one, the model itself is scored');
  }
}

/** A task with its items, which have been read. */
interface Prepared {
  readonly task: ScoringTask;
  readonly items: readonly never[];
  readonly examples: readonly never[];
  /** Digests of the files. */
  readonly data: string;
}

/** A model that is scored, under the name that its results have. */
interface Candidate {
  readonly name: 'model' | 'base' | 'adapter';
  readonly scored: ScoredModel;
  /** Digest of its weights. */
  readonly digest: string;
}

/** The result of scoring, as values and as text. */
export interface Scored {
  readonly result: readonly TaskScore[];
  readonly text: string;
}

/** Reads all data, loads the model and scores it on the tasks of the settings. */
export async function scoreModel(settings: EvaluateSettings, context: RunContext): Promise<Scored> {
  const { progress, signal } = context;
  // The data is read first: an error in it should not come after a model has been loaded.
  const prepared: Prepared[] = [];
  for (const name of new Set(settings.tasks)) {
    prepared.push(await prepare(scoringTask(name), settings, signal));
  }
  const { model, tokenizer } = await cliTaskOf(settings).loadBase(settings.model as string, {
    ...{ adapter: '', progress },
    ...loadOptions(settings, progress),
  });
  const result: TaskScore[] = [];
  for await (const candidate of candidates(model as CausalLM, settings, context)) {
    for (const one of prepared) {
      result.push(await scoreTask(candidate, one, { tokenizer, settings, context }));
    }
  }
  return { result, text: scoreTable(result) };
}

/** The models to score: one after the other, since the adapter is attached to the model that was the base. */
async function* candidates(
  model: CausalLM,
  settings: EvaluateSettings,
  { progress }: RunContext,
): AsyncGenerator<Candidate> {
  const { adapter, output, base = false } = settings;
  const needsDigest = output !== undefined;
  const digest = needsDigest ? baseSummary(model, await baseDigest(model)) : '';
  if (adapter === undefined) {
    yield { name: 'model', scored: model, digest };
    return;
  }
  if (base) yield { name: 'base', scored: model, digest };
  const tuned = showWarnings(
    await AdapterModel.fromPretrained(model, adapter, adapterOptions(settings)),
    progress,
  );
  const own = needsDigest ? await adapterDigest(tuned) : '';
  yield { name: 'adapter', scored: tuned, digest: `${digest}, adapter ${own}` };
}

async function prepare(
  task: ScoringTask,
  settings: EvaluateSettings,
  signal: AbortSignal,
): Promise<Prepared> {
  const { limit, numFewshot, data, fewshotData = data } = settings;
  const shots = numFewshot ?? ('numFewshot' in task ? task.numFewshot : 0);
  const read = async (given: string, part: DataPart, most?: number) => {
    const path = await fileOf(given, task, part);
    return { path, items: (await readItems(path, task, { limit: most, signal })) as never[] };
  };
  const { path, items } = await read(data as string, 'items', limit);
  const examples = shots === 0 ? null : await read(fewshotData as string, 'examples');
  const paths = [path, ...(examples === null ? [] : [examples.path])];
  const digests =
    settings.output === undefined ? [] : await Promise.all(paths.map((one) => digestOfFile(one)));
  return { task, items, examples: examples?.items ?? [], data: digests.join(' ') };
}

/** The file of a task that --data names: of its own (`task=file`), or by its name in a folder. */
async function fileOf(given: string, task: ScoringTask, part: DataPart): Promise<string> {
  if (!given.includes('=')) return findTaskFile(given, task, part);
  const named = given.split(',').map((one) => one.split('='));
  const found = named.find(([name]) => name === task.name || name === task.dataName);
  if (found?.[1] && found.length === 2) return found[1];
  const flag = part === 'items' ? '--data' : '--fewshot-data';
  throw new ArgumentError(`${flag}: there is no file for ${task.name}; give ${task.name}=FILE`);
}

interface TaskContext {
  readonly tokenizer: Tokenizer;
  readonly settings: EvaluateSettings;
  readonly context: RunContext;
}

/** Scores one model on one task. Records that the output folder has already are not computed again. */
async function scoreTask(
  { name, scored, digest }: Candidate,
  { task, items, examples, data }: Prepared,
  { tokenizer, settings, context: { progress, signal } }: TaskContext,
): Promise<TaskScore> {
  const begun = performance.now();
  const { numFewshot, maxNewTokens, output, dtype = 'f32' } = settings;
  const { perDeviceEvalBatchSize: batchSize = kEvalBatchSize } = settings;
  const records =
    output === undefined
      ? null
      : await ItemRecords.open(output, name === 'base' ? `${task.name}.base` : task.name, {
          ...{ task: task.name, version: task.version, model: digest, data, dtype },
          ...{ numFewshot: numFewshot ?? null, maxNewTokens: maxNewTokens ?? null },
        });
  const all = new Map<number, ItemRecord>(
    [...(records?.done ?? [])].filter(([index]) => index < items.length),
  );
  const resumed = all.size;
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
      await records?.add(record);
      all.set(record.index, record);
      progress.status(`${task.name} (${name}): ${all.size} of ${items.length} items`);
    }
  } finally {
    await records?.close();
  }
  if (resumed > 0) progress.message(`${task.name}: ${resumed} items were scored before`);
  const ordered = [...all.values()].sort((a, b) => a.index - b.index);
  const seconds = (performance.now() - begun) / 1000;
  return { ...{ model: name, seconds }, ...(await numbersOf(task, ordered, signal)) };
}

/** The numbers of a task and their intervals, by the records of its items in order. */
async function numbersOf(
  task: ScoringTask,
  records: readonly ItemRecord[],
  signal: AbortSignal,
): Promise<Omit<TaskScore, 'model' | 'seconds'>> {
  const metrics = records.map((one) => one.metrics);
  const values = summarize(task, metrics);
  const intervals = await confidenceIntervals(metrics, (some) => summarize(task, some), { signal });
  return {
    ...{ task: task.name, version: task.version, items: records.length },
    cutItems: records.filter(({ isCut }) => isCut).length,
    metrics: Object.fromEntries(
      Object.entries(values).map(([key, value]) => [
        key,
        { value, interval: intervals[key] ?? null },
      ]),
    ),
  };
}

/** Digits of a digest that identify an adapter. */
const kDigits = 16;

/** A digest of an adapter's configuration and weights. */
async function adapterDigest(tuned: AdapterModel<CausalLM>): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify(tuned.identity()));
  for (const { name, tensor } of tuned.parameters()) {
    const { buffer, byteOffset, byteLength } = await tensor.data();
    hash.update(name).update(new Uint8Array(buffer, byteOffset, byteLength));
  }
  return hash.digest('hex').slice(0, kDigits);
}

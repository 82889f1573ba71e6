/**
 * `balora evaluate --tasks`: scores a language model on benchmarks, with an adapter or without, or several adapters beside each
 * other and the base.
 */
import { ArgumentError, fileError } from '../errors.ts';
import { openCodeRunner } from '../eval/run_code.ts';
import { readItems } from '../eval/task_data.ts';
import { findTaskFile } from '../eval/task_files.ts';
import { isTaskFile, readTaskFile } from '../eval/task_yaml.ts';
import { scoringTask } from '../eval/tasks/registry.ts';
import { type DataPart, isCodeTask, type ScoringTask } from '../eval/tasks/task.ts';
import { digestOfFile } from '../io/checksums.ts';
import { statPath } from '../io/regular_file.ts';
import type { CausalLM } from '../models/index.ts';
import { type EvaluateSettings, kEvaluateOptions, kScoreOptions } from './evaluate_options.ts';
import { loadOptions } from './load.ts';
import { flagOf } from './option_table.ts';
import type { Progress } from './progress.ts';
import { candidates, folderNames } from './score_models.ts';
import { checkHasOutput, type PreparedTask, scoreTask, scoreWeights } from './score_task.ts';
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
  checkModels(settings);
  if (settings.unsafe && !settings.allowCodeExecution) {
    throw new ArgumentError('--unsafe needs --allow-code-execution: without it, no program is run');
  }
}

/** Checks the options that say which models are scored. */
function checkModels({ adapter, compare, base, intruders }: EvaluateSettings): void {
  if (compare !== undefined && adapter !== undefined) {
    throw new ArgumentError('--adapter has no meaning beside --compare, which names the adapters');
  }
  if (base && adapter === undefined && compare === undefined) {
    throw new ArgumentError('--base needs --adapter: without one, the model itself is scored');
  }
  if (intruders !== undefined && compare === undefined) {
    throw new ArgumentError('--intruders needs --compare');
  }
  if (compare !== undefined) folderNames(compare);
}

/** The result of scoring, as values and as text. */
export interface Scored {
  readonly result: readonly TaskScore[];
  readonly text: string;
}

/** Reads all data, loads the model and scores it on the tasks of the settings. */
export async function scoreModel(settings: EvaluateSettings, run: RunContext): Promise<Scored> {
  const { progress, signal } = run;
  // All names are checked first, then all data: an error in either should not come after a model has been loaded.
  const tasks: ScoringTask[] = [];
  for (const name of new Set(settings.tasks)) {
    const task = isTaskFile(name) ? await readTaskFile(name) : scoringTask(name);
    checkHasOutput(task, settings);
    tasks.push(task);
  }
  checkLimits(settings, tasks);
  const prepared: PreparedTask[] = [];
  for (const task of tasks) prepared.push(await prepare(task, settings, signal));
  const runner = prepared.some(({ task }) => isCodeTask(task))
    ? await runnerOf(settings, progress)
    : null;
  const { model, tokenizer } = await cliTaskOf(settings).loadBase(settings.model as string, {
    ...{ adapter: '', progress },
    ...loadOptions(settings, progress),
  });
  const context = { ...run, tokenizer, settings, runner };
  const result: TaskScore[] = [];
  for await (const candidate of candidates(model as CausalLM, settings, run)) {
    for (const one of prepared) result.push(await scoreTask(candidate, one, context));
    const { compare, intruders = true } = settings;
    if (compare === undefined || !intruders || candidate.tuned === null) continue;
    result.push(await scoreWeights(candidate, candidate.tuned, context));
  }
  return { result, text: scoreTable(result) };
}

/** Refuses a limit of a task that is not scored. @throws ArgumentError */
function checkLimits({ limit }: EvaluateSettings, tasks: readonly ScoringTask[]): void {
  const names = tasks.map(({ name }) => name);
  const odd =
    typeof limit === 'object' ? Object.keys(limit).find((one) => !names.includes(one)) : undefined;
  if (odd === undefined) return;
  throw new ArgumentError(`--limit: ${odd} is not among the tasks ${names.join(', ')}`);
}

/** The runner of programs, after a warning; null: it is not allowed. */
async function runnerOf(
  { allowCodeExecution = false, unsafe = false }: EvaluateSettings,
  progress: Progress,
) {
  if (!allowCodeExecution) return null;
  const runner = await openCodeRunner({ unsafe });
  progress.warn(
    runner.isIsolated
      ? 'programs that the model writes are run: without network, without your files and with limits, but on your kernel; take a ' +
          'machine of its own for a model that you do not trust'
      : 'programs that the model writes are run WITH the network and WITH the rights of your user (--unsafe)',
  );
  for (const one of runner.missing) progress.warn(`programs that the model writes: ${one}`);
  return runner;
}

async function prepare(
  task: ScoringTask,
  settings: EvaluateSettings,
  signal: AbortSignal,
): Promise<PreparedTask> {
  const { numFewshot, data, fewshotData = data } = settings;
  const shots = numFewshot ?? ('numFewshot' in task ? task.numFewshot : 0);
  const read = async (given: string, part: DataPart, most?: number) => {
    const path = await fileOf(given, task, part);
    const items = (await readItems(path, task, { limit: most, part, signal })) as never[];
    return { path, items };
  };
  const { path, items } = await read(data as string, 'items', limitOf(task, settings));
  if (shots > 0 && isOwnFile(settings) && task.belongsTo === undefined) {
    throw new ArgumentError(
      `--fewshot-data: ${task.name} is asked with ${shots} examples; give their file, since --data names that of the items`,
    );
  }
  const examples = shots === 0 ? null : await read(fewshotData as string, 'examples');
  const paths = [path, ...(examples === null ? [] : [examples.path])];
  const digests =
    settings.output === undefined ? [] : await Promise.all(paths.map((one) => digestOfFile(one)));
  return { task, items, examples: examples?.items ?? [], data: digests.join(' ') };
}

/** The number of items of a task; undefined: all of them. */
function limitOf({ name }: ScoringTask, { limit }: EvaluateSettings): number | undefined {
  return typeof limit === 'object' ? limit[name] : limit;
}

/** Whether --data names files, and no others have the examples. */
function isOwnFile({ data, fewshotData }: EvaluateSettings): boolean {
  return fewshotData === undefined && (data as string).includes('=');
}

/**
 * The file of a task that --data names: of its own (`task=file`), or by its name in a folder.
 * @throws FormatError for a folder that is missing, ArgumentError for a file without its task, and where none of the task is named
 */
async function fileOf(given: string, task: ScoringTask, part: DataPart): Promise<string> {
  const flag = part === 'items' ? '--data' : '--fewshot-data';
  if (!given.includes('=')) {
    const found = await statPath(given);
    if (found?.isFile()) {
      throw new ArgumentError(
        `${flag}: ${given} is a file; say of which task it is: ${flag} ${task.name}=${given}`,
      );
    }
    if (found !== null) return findTaskFile(given, task, part);
    throw fileError(given, 'no such folder', `check the path, or name the file: ${task.name}=FILE`);
  }
  const named = given.split(',').map((one) => one.split('='));
  const found = named.find(([name]) => name === task.name || name === task.dataName);
  if (found?.[1] && found.length === 2) return found[1];
  throw new ArgumentError(`${flag}: there is no file for ${task.name}; give ${task.name}=FILE`);
}

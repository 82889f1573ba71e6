/** The model card: README.md with the front matter that PEFT and the Hub read, the settings of the adapter, and the run as table and plot. */
import { basename, join, resolve } from 'node:path';
import type { AdapterModel } from '../adapters/adapter_model.ts';
import { hasAlpha, PEFT_VERSION } from '../adapters/config.ts';
import { ownFormOf } from '../adapters/methods/registry.ts';
import { writeFileAtomic } from '../io/files.ts';
import { formatBytes } from '../io/format_bytes.ts';
import { hubIdOf } from '../io/hub/names.ts';
import { MODEL_CARD } from '../io/model_folder.ts';
import { packageVersion } from '../io/package_version.ts';
import { isMissing, readText } from '../io/regular_file.ts';
import { objectIn, RUN_FILES, recordOf } from '../io/run_folder.ts';
import type { Model } from '../models/index.ts';

/** Where a card is written, and of what. */
interface CardOptions {
  /** The folder that the card is written into. */
  readonly folder: string;
  /** The adapter's folder, whose run is described: the output of a run, a checkpoint, or any other folder. */
  readonly adapter: string;
  /** Whether the folder holds a whole model rather than an adapter. */
  readonly merged: boolean;
}

/** The line by which a card that was written here, and not changed by anyone, is known again. */
const kOwn =
  '<!-- Written by balora, and written again with the adapter unless this line is removed. -->';

/** Writes README.md, unless there is one that somebody else has written. */
export async function writeCard(tuned: AdapterModel<Model>, options: CardOptions): Promise<void> {
  const path = join(options.folder, MODEL_CARD);
  const existing = await readText(path).catch((error: unknown) => {
    if (isMissing(error)) return null;
    throw error;
  });
  if (existing !== null && !existing.includes(kOwn)) return;
  await writeFileAtomic(path, modelCard(tuned, await readRun(options.adapter), options.merged));
}

/** The part of a step's record that a card uses; a line of another version may lack any of it. */
interface Step {
  readonly step: number;
  readonly epoch?: number;
  readonly loss: number;
  readonly learningRate?: number;
  readonly tokens?: number;
  readonly elapsedSeconds?: number;
  readonly peakRssBytes?: number;
}

/** An evaluation of a run: its step, and its numbers by name. */
interface EvaluationLine {
  readonly step: number;
  readonly [name: string]: unknown;
}

/** The record of a run as far as an adapter is of it. */
interface RunRecord {
  readonly steps: readonly Step[];
  readonly evaluations: readonly EvaluationLine[];
}

const kStepFolder = /^step-(\d+)$/;

/** The record of the run that an adapter's folder belongs to; empty where there is none. It only informs. */
async function readRun(adapter: string): Promise<RunRecord> {
  const record = recordOf(adapter);
  const exported = (await lines<{ step: number }>(join(record, RUN_FILES.exported)))[0];
  const [, ofCheckpoint] = kStepFolder.exec(basename(resolve(adapter))) ?? [];
  const last = Number(ofCheckpoint ?? exported?.step ?? Number.POSITIVE_INFINITY);
  const until = <T extends { step: number }>(all: readonly T[]): readonly T[] =>
    all.filter(({ step }) => Number.isInteger(step) && step <= last);
  const steps = until(await lines<Step>(join(record, RUN_FILES.metrics)));
  return {
    steps: steps.filter(({ loss }) => Number.isFinite(loss)),
    evaluations: until(await lines<EvaluationLine>(join(record, RUN_FILES.evaluations))),
  };
}

/** The objects in the lines of a file, or in the whole of it; none for a file that is not there. */
async function lines<T extends object>(path: string): Promise<T[]> {
  const text = await readText(path).catch(() => '');
  const whole = objectIn<T>(text);
  if (whole !== null) return [whole];
  return text.split('\n').flatMap((line) => objectIn<T>(line) ?? []);
}

/** The text of a model card. */
export function modelCard(
  { model, config, modules, method }: AdapterModel<Model>,
  { steps, evaluations }: RunRecord,
  merged: boolean,
): string {
  const name = config.baseModelNameOrPath ?? model.nameOrPath;
  const id = hubIdOf(name);
  const readers = ownFormOf(config.peftType)?.inPeft === false ? 'balora' : 'PEFT or balora';
  const what = merged
    ? `This is ${code(name)} with a fine-tuned adapter merged into its weights.`
    : `This is an adapter for ${code(name)}. It is applied to the base with ${readers}.`;
  const settings: [string, string][] = [
    ['base model', code(name)],
    ...(method === null ? [] : ([['method', method]] as [string, string][])),
    ['r', `${config.r}`],
    ...(hasAlpha(config.peftType)
      ? ([['lora_alpha', `${config.loraAlpha}`]] as [string, string][])
      : []),
    ['adapted modules', `${modules.length}`],
    ['target_modules', code(JSON.stringify(config.targetModules))],
  ];
  const parts = [
    frontMatter(id, { merged, pipeline: kPipelines[model.taskType] }),
    kOwn,
    `# ${merged ? 'Fine-tuned model' : 'Adapter'}\n\n${what}`,
    `## Settings\n\n${table(['setting', 'value'], settings)}`,
    ...(steps.length === 0 ? [] : [`## Training\n\n${trainingText(steps)}`]),
    ...(evaluations.length === 0 ? [] : [`## Evaluation\n\n${evaluationText(evaluations)}`]),
    `### Framework versions\n\n- balora ${packageVersion()}${merged ? '' : `\n- PEFT ${PEFT_VERSION} (format of the files)`}`,
  ];
  return `${parts.join('\n\n')}\n`;
}

const kPipelines = {
  CAUSAL_LM: 'text-generation',
  SEQ_CLS: 'text-classification',
  SEQ_2_SEQ_LM: 'text2text-generation',
} as const;

/** The front matter, with the keys in PEFT's order. The Hub accepts no path as base_model. */
function frontMatter(
  id: string | null,
  { merged, pipeline }: { merged: boolean; pipeline: string },
): string {
  const relation = merged ? 'finetune' : 'adapter';
  const tags = [
    ...(id === null ? [] : [`base_model:${relation}:${id}`]),
    ...(merged ? [] : ['lora', 'transformers']),
    'balora',
  ];
  return [
    '---',
    ...(id === null ? [] : [`base_model: ${id}`]),
    `library_name: ${merged ? 'transformers' : 'peft'}`,
    `pipeline_tag: ${pipeline}`,
    'tags:',
    ...tags.map((tag) => `- ${tag}`),
    '---',
  ].join('\n');
}

/** A text as code, in as many backquotes as it needs, on one line. */
function code(text: string): string {
  const line = text.replace(/\s+/g, ' ').replaceAll('|', '\\|');
  const fence = line.includes('`') ? '``' : '`';
  return `${fence}${line}${fence}`;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

/** Rows of a table of steps, and columns and lines of a plot. */
const kRows = 12;
const kColumns = 64;
const kLines = 12;

const short = (value: unknown): string =>
  typeof value === 'number' ? `${Number(value.toPrecision(4))}` : '';

function trainingText(steps: readonly Step[]): string {
  const last = steps.at(-1) as Step;
  const sum = steps.reduce((total, { tokens = 0 }) => total + tokens, 0);
  const facts = [
    `${last.step} steps`,
    ...(last.epoch === undefined ? [] : [`${short(last.epoch)} epochs`]),
    `${sum} tokens`,
    ...(last.elapsedSeconds === undefined ? [] : [`${short(last.elapsedSeconds)} s`]),
    ...(last.peakRssBytes === undefined ? [] : [`${formatBytes(last.peakRssBytes)} of memory`]),
  ];
  const rows = spaced(steps, kRows).map(({ step, epoch, loss, learningRate }) => [
    `${step}`,
    short(epoch),
    short(loss),
    short(learningRate),
  ]);
  return [
    `${facts.join(', ')}.`,
    table(['step', 'epoch', 'loss', 'learning rate'], rows),
    ...(steps.length < 3 ? [] : [`\`\`\`text\n${plot(steps)}\n\`\`\``]),
  ].join('\n\n');
}

/** Numbers of an evaluation that a table shows, the names as they are in the record. */
function evaluationText(evaluations: readonly EvaluationLine[]): string {
  const names = Object.entries(evaluations.at(-1) as EvaluationLine)
    .filter(([name, value]) => name !== 'step' && typeof value === 'number')
    .map(([name]) => name);
  const rows = spaced(evaluations, kRows).map((line) => [
    `${line.step}`,
    ...names.map((name) => short(line[name])),
  ]);
  return table(['step', ...names], rows);
}

/** At most `most` items of a list at equal distances, the first and the last among them. */
function spaced<T>(items: readonly T[], most: number): T[] {
  if (items.length <= most) return [...items];
  const stride = (items.length - 1) / (most - 1);
  return Array.from({ length: most }, (_, i) => items[Math.round(i * stride)] as T);
}

/** The loss over the steps as text: each column is the mean of the steps in it. */
function plot(steps: readonly Step[]): string {
  const columns = Math.min(kColumns, steps.length);
  const means = Array.from({ length: columns }, (_, column) => {
    const from = Math.floor((column * steps.length) / columns);
    const part = steps.slice(from, Math.floor(((column + 1) * steps.length) / columns));
    return part.reduce((sum, { loss }) => sum + loss, 0) / part.length;
  });
  const [least, most] = [Math.min(...means), Math.max(...means)];
  const lineOf = (mean: number): number =>
    most === least ? 0 : Math.round(((most - mean) / (most - least)) * (kLines - 1));
  const labels = Array.from({ length: kLines }, (_, line) =>
    short(most - ((most - least) * line) / (kLines - 1)),
  );
  const width = Math.max(...labels.map((label) => label.length));
  const [first, last] = [steps[0] as Step, steps.at(-1) as Step];
  return [
    'loss',
    ...labels.map((label, line) => {
      const marks = means.map((mean) => (lineOf(mean) === line ? '*' : ' ')).join('');
      return `${label.padStart(width)} |${marks}`.trimEnd();
    }),
    `${' '.repeat(width)} +${'-'.repeat(columns)}`,
    `${' '.repeat(width)}  step ${first.step} to ${last.step}`,
  ].join('\n');
}

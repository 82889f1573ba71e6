/**
 * The model card: README.md with the front matter that PEFT and the Hub read, the settings of the adapter, and the run as a table
 * and a picture.
 */
import { basename, join, resolve } from 'node:path';
import type { AdapterModel } from '../adapters/adapter_model.ts';
import { hasAlpha, PEFT_VERSION } from '../adapters/config.ts';
import { typeNamed } from '../adapters/methods/registry.ts';
import { writeFileAtomic } from '../io/files.ts';
import { formatBytes } from '../io/format_bytes.ts';
import { hubIdOf } from '../io/hub/names.ts';
import { LOSS_PLOT, MODEL_CARD } from '../io/model_folder.ts';
import { packageVersion } from '../io/package_version.ts';
import { ifThere, readText } from '../io/regular_file.ts';
import { objectIn, RUN_FILES, recordOf } from '../io/run_folder.ts';
import type { Model } from '../models/index.ts';
import { oneLine } from '../shown.ts';
import { type Curve, lossPlot } from './loss_plot.ts';

/** The line by which a card that was written here, and not changed by anyone, is known again. */
const kOwn =
  '<!-- Written by balora, and written again with the adapter unless this line is removed. -->';

/**
 * Writes README.md and the picture in it, unless there is one that somebody else has written.
 * @param adapter the adapter's folder, whose run is described: the output of a run, a checkpoint, or any other folder
 * @param merged whether the folder holds a whole model rather than an adapter
 */
export async function writeCard(
  tuned: AdapterModel<Model>,
  { folder, adapter, merged }: { folder: string; adapter: string; merged: boolean },
): Promise<void> {
  const path = join(folder, MODEL_CARD);
  const existing = await ifThere(readText(path));
  if (existing !== null && !existing.includes(kOwn)) return;
  const run = await readRun(adapter);
  const curves = curvesOf(run);
  if (curves !== null) await writeFileAtomic(join(folder, LOSS_PLOT), lossPlot(curves));
  await writeFileAtomic(path, modelCard(tuned, run, merged));
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
  const last = ofCheckpoint === undefined ? exported?.step : Number(ofCheckpoint);
  const most = typeof last === 'number' ? last : Number.POSITIVE_INFINITY;
  const until = <T extends { step: number }>(all: readonly T[]): readonly T[] =>
    all.filter(({ step }) => Number.isInteger(step) && step <= most);
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
  run: RunRecord,
  merged: boolean,
): string {
  const { steps, evaluations } = run;
  const name = config.baseModelNameOrPath ?? model.nameOrPath;
  const id = hubIdOf(name);
  const readers = typeNamed(config.peftType)?.inPeft === false ? 'balora' : 'PEFT or balora';
  const what = merged
    ? `This is ${code(name)} with a fine-tuned adapter merged into its weights.`
    : `This is an adapter for ${code(name)}. It is applied to the base with ${readers}.`;
  const settings = [
    ['base model', code(name)],
    ['method', method],
    ['r', `${config.r}`],
    ['lora_alpha', hasAlpha(config.peftType) ? `${config.loraAlpha}` : null],
    ['adapted modules', `${modules.length}`],
    ['target_modules', code(JSON.stringify(config.targetModules))],
  ].filter((row): row is string[] => row[1] !== null);
  const parts = [
    frontMatter(id, { merged, pipeline: kPipelines[model.taskType] }),
    kOwn,
    `# ${merged ? 'Fine-tuned model' : 'Adapter'}\n\n${what}`,
    `## Settings\n\n${table(['setting', 'value'], settings)}`,
    ...(steps.length === 0 ? [] : [`## Training\n\n${trainingText(run)}`]),
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
  const line = oneLine(text.replace(/\s+/g, ' ')).replaceAll('|', '\\|');
  const longest = Math.max(0, ...Array.from(line.matchAll(/`+/g), ([run]) => run.length));
  const fence = '`'.repeat(longest + 1);
  // Spaces, of which Markdown drops one on each side, keep a quote at an end apart from the fence.
  return longest === 0 ? `${fence}${line}${fence}` : `${fence} ${line} ${fence}`;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

/** Rows of a table of steps, the most points of a curve, and the fewest steps of which one is drawn. */
const kRows = 12;
const kPoints = 200;
const kFewest = 3;

const isNumber = (value: unknown): value is number => typeof value === 'number';
const short = (value: unknown): string =>
  isNumber(value) ? `${Number(value.toPrecision(4))}` : '';

function trainingText(run: RunRecord): string {
  const { steps } = run;
  const last = steps.at(-1) as Step;
  const sum = steps.reduce((total, { tokens }) => total + (isNumber(tokens) ? tokens : 0), 0);
  const facts = [
    `${last.step} steps`,
    ...(isNumber(last.epoch) ? [`${short(last.epoch)} epochs`] : []),
    `${sum} tokens`,
    ...(isNumber(last.elapsedSeconds) ? [`${short(last.elapsedSeconds)} s`] : []),
    ...(isNumber(last.peakRssBytes) ? [`${formatBytes(last.peakRssBytes)} of memory`] : []),
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
    ...(curvesOf(run) === null ? [] : [`![The loss over the steps](${LOSS_PLOT})`]),
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

/** The losses of a run as curves; null: it is too short for a picture. */
function curvesOf({ steps, evaluations }: RunRecord): Curve[] | null {
  if (steps.length < kFewest) return null;
  const count = Math.min(kPoints, steps.length);
  const points = Array.from({ length: count }, (_, at): [number, number] => {
    const from = Math.floor((at * steps.length) / count);
    const part = steps.slice(from, Math.floor(((at + 1) * steps.length) / count));
    const sum = (of: (step: Step) => number) => part.reduce((total, one) => total + of(one), 0);
    return [sum(({ step }) => step) / part.length, sum(({ loss }) => loss) / part.length];
  });
  const heldOut = evaluations.flatMap(({ step, loss }): [number, number][] =>
    typeof loss === 'number' && Number.isFinite(loss) ? [[step, loss]] : [],
  );
  return [
    { name: 'training loss', points },
    ...(heldOut.length === 0 ? [] : [{ name: 'held-out loss', points: heldOut }]),
  ];
}

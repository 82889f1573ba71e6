/** `balora train`: settings to a Trainer, its events to the terminal. */
import { join } from 'node:path';
import type { Command } from 'commander';
import { loraConfig } from '../adapters/config.ts';
import { RESIDUAL_BASE } from '../adapters/export.ts';
import type { BatchOptions } from '../data/batches.ts';
import type { LabelledOptions } from '../data/labelled_batches.ts';
import { setNumThreads } from '../runtime.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import { resolveRegularizers } from '../train/methods.ts';
import { resolveOptions } from '../train/options.ts';
import { checkOutput } from '../train/output.ts';
import { type ClassifierTrainerOptions, Trainer, type TrainerOptions } from '../train/trainer.ts';
import type { TrainResult } from '../train/types.ts';
import { loadTunedClassifier, openLabelled, trainedHead } from './classifier_load.ts';
import { addOptions, readOptions } from './command_options.ts';
import { namesOfHead, warnOfGuess } from './head_names.ts';
import { abortable, type Interrupt, interruptOf } from './interrupt.ts';
import { loadOptions, loadTuned, openBatches } from './load.ts';
import { dataText, type PlanStatistics, planText } from './plan_view.ts';
import type { CliContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { formatSeconds } from './terminal.ts';
import { kTrainOptions, type TrainSettings } from './train_options.ts';
import { kTrainDefaults, type LabelledSetup, type TrainSetup, trainSetup } from './train_setup.ts';

export const addTrain: CommandModule = (program, context, run) => {
  const command = program.command('train').description('fine-tune a model');
  const { optimization, output } = resolveOptions({});
  addOptions(command, kTrainOptions, {
    config: true,
    defaults: {
      ...resolveRegularizers({}),
      ...loraConfig({}),
      ...optimization,
      ...output,
      ...kTrainDefaults,
      // The method's preset decides.
      ...{ consistencyWeight: null, diversityWeight: null, svdWeight: null, initLoraWeights: null },
    },
  });
  command.action(
    run(async (_: unknown, self: Command) =>
      train(await readOptions(self, kTrainOptions), context),
    ),
  );
};

async function train(settings: TrainSettings, context: CliContext): Promise<number> {
  const progress = new Progress(context.stderr);
  let begun = false;
  const onBegin = () => {
    begun = true;
  };
  const stopping = () => {
    const when = begun ? 'after this micro-batch' : 'before the first step';
    const kept = begun && settings.output !== undefined ? '; the checkpoint can be resumed' : '';
    return `stopping ${when}${kept} (interrupt again to quit at once)`;
  };
  try {
    return await abortable(
      (signal) => run(settings, { context, progress, signal, onBegin }),
      () => progress.message(stopping()),
    );
  } catch (error) {
    const interrupt = interruptOf(error);
    if (interrupt === null) throw error;
    progress.message('stopped before the first step: nothing was written, begin anew');
    return interrupt.exitCode;
  } finally {
    progress.clear();
  }
}

interface Surroundings {
  context: CliContext;
  progress: Progress;
  signal: AbortSignal;
  /** Called when the run itself begins: from here on there is something to save. */
  onBegin: () => void;
}

async function run(
  settings: TrainSettings,
  { context, progress, signal, onBegin }: Surroundings,
): Promise<number> {
  const setup = trainSetup(settings);
  if (settings.threads !== undefined) setNumThreads(settings.threads);
  if (settings.output !== undefined && !settings.dryRun) {
    const { overwrite = false, resume = false } = settings;
    await checkOutput(settings.output, { overwrite, resume });
  }
  const prepared =
    setup.labelled === null
      ? await prepare(settings, setup, { progress, signal })
      : await prepareClassifier(
          settings,
          { ...setup, labelled: setup.labelled },
          { progress, signal },
        );
  const { input, tokenizer, statistics, format, close } = prepared;
  try {
    const trainer = new Trainer(input);
    if (settings.dryRun) {
      const plan = await trainer.plan({ measure: true });
      context.stdout.write(`${planText(plan, statistics, format)}\n`);
      return 0;
    }
    progress.message(`data: ${dataText(statistics, format)}`);
    if (settings.output === undefined) progress.warn('no --output: the result is written nowhere');
    signal.throwIfAborted();
    onBegin();
    const events = trainer.run();
    for (;;) {
      const { value, done } = await events.next();
      if (done) {
        await saveTokenizer(value, input, tokenizer);
        return report(value, settings, { progress, signal });
      }
      progress.show(value);
    }
  } finally {
    await close();
  }
}

/** A run that is ready to begin, and what its plan says of the data. */
interface Prepared {
  readonly input: TrainerOptions | ClassifierTrainerOptions;
  readonly tokenizer: Tokenizer;
  readonly statistics: PlanStatistics;
  readonly format: string;
  close(): Promise<void>;
}

type Telling = Pick<Surroundings, 'progress' | 'signal'>;

async function prepare(
  settings: TrainSettings,
  setup: TrainSetup,
  { progress, signal }: Telling,
): Promise<Prepared> {
  const { tuned, tokenizer } = await loadTuned(settings, setup, { progress, signal });
  const open = (file: string, options: BatchOptions) =>
    openBatches(file, tokenizer, { ...options, columns: setup.columns, progress, signal });
  const data = await open(settings.data as string, setup.batches);
  const evalData =
    settings.evalData === undefined ? null : await open(settings.evalData, setup.evalBatches);
  return {
    input: {
      ...setup.training,
      tuned,
      data: data.batches,
      ...(evalData === null ? {} : { evalData: evalData.batches }),
      signal,
    },
    tokenizer,
    statistics: data.batches.statistics,
    format: data.batches.format,
    close: async () => {
      await data.close();
      await evalData?.close();
    },
  };
}

async function prepareClassifier(
  settings: TrainSettings,
  setup: TrainSetup & { labelled: LabelledSetup },
  { progress, signal }: Telling,
): Promise<Prepared> {
  const { data: dataOptions, evalData: evalOptions, ...labelled } = setup.labelled;
  const { headWarmupEpochs, metricForBestModel } = labelled;
  const path = settings.model as string;
  const how = loadOptions(settings, progress);
  // What the model is comes before what its tokenizer lacks.
  const head = await trainedHead(path, { adapter: settings.adapter, ...how });
  const tokenizer = await Tokenizer.fromPretrained(path, how);
  const open = (file: string, options: LabelledOptions) =>
    openLabelled(file, tokenizer, { ...options, columns: setup.columns, progress, signal });
  const kept = head !== null && (head.inAdapter || !settings.newHead) ? head : null;
  const ofHead = kept === null ? undefined : namesOfHead(kept, settings, progress);
  const data = await open(settings.data as string, {
    ...dataOptions,
    ...(ofHead === undefined ? {} : { labelNames: ofHead }),
  });
  if (kept !== null) warnOfGuess(kept, data.scheme, { ...settings, progress });
  // The held-out labels mean what the training labels mean.
  const { numLabels, problemType, names } = data.scheme;
  const known = { numLabels, problemType, ...(names === null ? {} : { labelNames: names }) };
  const evalData =
    settings.evalData === undefined
      ? null
      : await open(settings.evalData, { ...evalOptions, ...known });
  const tuned = await loadTunedClassifier(settings, setup, { data, progress, signal });
  // What the head's outputs and their ids mean, for `evaluate` and `merge`.
  const meaning = {
    'problem-type': problemType,
    ...(names === null ? {} : { 'label-names': names }),
  };
  return {
    input: {
      ...setup.training,
      runConfig: { ...(setup.training.runConfig as object), ...meaning },
      ...(headWarmupEpochs > 0 && { preparation: { headWarmupEpochs } }),
      tuned,
      data,
      ...(evalData === null ? {} : { evalData }),
      ...(metricForBestModel === undefined ? {} : { metricForBestModel }),
      signal,
    },
    tokenizer,
    statistics: data.statistics,
    format: data.format,
    close: async () => {},
  };
}

/** Beside a model that was written: one read from a lone GGUF file brought no tokenizer's files to copy. */
async function saveTokenizer(
  { output }: TrainResult,
  { tuned, export: form }: Prepared['input'],
  tokenizer: Tokenizer,
): Promise<void> {
  if (output === null) return;
  if (tuned.kind === 'full') await tokenizer.save(output);
  else if (form === 'residual') await tokenizer.save(join(output, RESIDUAL_BASE));
}

function report(
  result: TrainResult,
  settings: TrainSettings,
  { progress, signal }: Telling,
): number {
  progress.clear();
  const { reason, steps, elapsedSeconds, output, best } = result;
  const where = output === null ? '' : `, written to ${output}`;
  const kept =
    best === null ? '' : `; kept step ${best.step} (${best.metric} ${best.value.toFixed(4)})`;
  const onward = reason === 'aborted' ? `; ${howToGoOn(result, settings)}` : '';
  progress.message(
    `${reason} after ${steps} steps and ${formatSeconds(elapsedSeconds)}${where}${kept}${onward}`,
  );
  return reason === 'aborted' ? (signal.reason as Interrupt).exitCode : 0;
}

function howToGoOn({ checkpoint }: TrainResult, { output }: TrainSettings): string {
  if (output === undefined) return 'without --output nothing is kept';
  return checkpoint === null
    ? 'there is no step to resume, begin anew with --overwrite'
    : `the same command with --resume goes on from ${checkpoint}`;
}

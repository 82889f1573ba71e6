/** `balora evaluate`: held-out numbers of a model, with or without an adapter. */
import type { Command } from 'commander';
import { AdapterModel } from '../adapters/adapter_model.ts';
import type { LabelOptions } from '../data/labels.ts';
import { ArgumentError } from '../errors.ts';
import { evaluateClassifier } from '../eval/classify.ts';
import { type EvaluatedModel, evaluate } from '../eval/evaluate.ts';
import type { CausalLM } from '../models/index.ts';
import { setNumThreads } from '../runtime.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import type { EvaluationResult } from '../train/types.ts';
import { loadClassifier, openLabelled, type TrainedHead, trainedHead } from './classifier_load.ts';
import { addOptions, readOptions } from './command_options.ts';
import { classifierText } from './evaluation_view.ts';
import { namesOfHead, warnOfGuess } from './head_names.ts';
import { abortable, interruptOf } from './interrupt.ts';
import { loadModel, loadOptions, openBatches, warned } from './load.ts';
import type { OptionRow, OptionValues } from './option_table.ts';
import { integer, onOff, text } from './option_types.ts';
import type { CliContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { formatSeconds } from './terminal.ts';
import { kExampleOptions, kLabelOptions, kModelOptions, kTaskOption } from './train_options.ts';
import {
  checkTask,
  exampleOptions,
  isClassification,
  kTrainDefaults,
  labelledOptions,
  listOf,
} from './train_setup.ts';

const kGroup = 'Model, data and output';

const kEvaluateOptions = {
  ...kTaskOption,
  ...kModelOptions,
  adapter: { type: text('folder'), help: 'a PEFT folder to put on the model', group: kGroup },
  data: {
    type: text('file'),
    help: 'held-out data: .tsv, .csv, .parquet or JSON Lines',
    group: kGroup,
    required: true,
  },
  json: { type: onOff(), help: 'the result as JSON, with every example', group: kGroup },
  perDeviceEvalBatchSize: {
    type: integer(1),
    help: 'examples of a batch; the result does not depend on it',
    group: kGroup,
  },
  ...kExampleOptions,
  ...kLabelOptions,
} satisfies Record<string, OptionRow>;

type EvaluateSettings = OptionValues<typeof kEvaluateOptions>;

const kBatchSize = 8;

export const addEvaluate: CommandModule = (program, context, run) => {
  const command = program
    .command('evaluate')
    .description(
      'held-out numbers: loss, divergence from the base, entropy, rank; of a classifier metrics, confusion matrix, recall by class',
    );
  addOptions(command, kEvaluateOptions, {
    defaults: { ...kTrainDefaults, perDeviceEvalBatchSize: kBatchSize },
  });
  command.action(
    run(async (_: unknown, self: Command) => {
      const settings = await readOptions(self, kEvaluateOptions);
      checkTask(settings);
      try {
        return await abortable(
          (signal) =>
            isClassification(settings)
              ? runClassifier(settings, { context, signal })
              : runEvaluate(settings, { context, signal }),
          () => {},
        );
      } catch (error) {
        const interrupt = interruptOf(error);
        if (interrupt === null) throw error;
        return interrupt.exitCode;
      }
    }),
  );
};

async function runEvaluate(
  settings: EvaluateSettings,
  { context, signal }: { context: CliContext; signal: AbortSignal },
): Promise<number> {
  const progress = new Progress(context.stderr);
  const { adapter, threads } = settings;
  if (threads !== undefined) setNumThreads(threads);
  const how = loadOptions(settings, progress);
  const { model, tokenizer } = await loadModel(settings.model as string, how);
  const { batches, close } = await openBatches(settings.data as string, tokenizer, {
    ...exampleOptions(settings),
    columns: listOf(settings.columns),
    batchSize: settings.perDeviceEvalBatchSize ?? kBatchSize,
    shuffle: false,
    progress,
    signal,
  });
  try {
    const tuned =
      adapter === undefined
        ? untuned(model)
        : warned(await AdapterModel.load(model, adapter), progress);
    const result = await evaluate(tuned, batches.batches(0), { signal });
    const text = settings.json ? JSON.stringify(result, null, 2) : evaluationText(result);
    context.stdout.write(`${text}\n`);
    return 0;
  } finally {
    await close();
  }
}

async function runClassifier(
  settings: EvaluateSettings,
  { context, signal }: { context: CliContext; signal: AbortSignal },
): Promise<number> {
  const progress = new Progress(context.stderr);
  const { adapter, threads } = settings;
  if (threads !== undefined) setNumThreads(threads);
  const path = settings.model as string;
  const how = loadOptions(settings, progress);
  const head = await trainedHead(path, { adapter, ...how });
  const tokenizer = await Tokenizer.fromPretrained(path, how);
  const data = await openLabelled(settings.data as string, tokenizer, {
    ...labelledOptions(settings),
    ...(head === null ? {} : labelsOf(head, settings, progress)),
    columns: listOf(settings.columns),
    batchSize: settings.perDeviceEvalBatchSize ?? kBatchSize,
    shuffle: false,
    progress,
    signal,
  });
  if (head !== null) warnOfGuess(head, data.scheme, { ...settings, progress });
  const newHead = head?.inAdapter ?? false;
  const model = await loadClassifier(path, data.scheme, { ...how, newHead });
  model.checkLength(data.statistics.longest);
  if (adapter !== undefined) warned(await AdapterModel.load(model, adapter), progress);
  if (head === null) {
    const drawn = model.newlyInitialized.join(', ');
    progress.warn(`${path} has no trained head (${drawn} drawn anew): the numbers mean nothing`);
  }
  const result = await evaluateClassifier(model, data.batches(), { signal });
  const text = settings.json
    ? JSON.stringify(result, null, 2)
    : classifierText(result, data.scheme.names);
  context.stdout.write(`${text}\n`);
  return 0;
}

/**
 * The labels are those of the trained head, unless more is said of them: held-out data may lack a class, its names sorted may
 * then be others' ids, and numbers look like flags.
 * @throws ArgumentError for another number of labels
 */
function labelsOf(head: TrainedHead, settings: EvaluateSettings, progress: Progress): LabelOptions {
  const { numLabels, labelNames, glue } = settings;
  const problemType = settings.problemType ?? (glue === undefined ? head.problemType : null);
  const asked = numLabels ?? listOf(labelNames)?.length;
  if (asked !== undefined && asked !== head.labels) {
    const option = numLabels === undefined ? 'label-names' : 'num-labels';
    throw new ArgumentError(
      `the head in ${head.where} has ${head.labels} labels, --${option} says ${asked}`,
    );
  }
  const names = namesOfHead(head, settings, progress);
  const meaning = problemType === null ? {} : { problemType };
  if (names !== undefined) return { ...meaning, labelNames: names };
  const open = glue === undefined && labelNames === undefined;
  return { ...meaning, ...(open ? { numLabels: head.labels } : {}) };
}

/** A model as it is: there is nothing to compare it with. */
function untuned(model: CausalLM): EvaluatedModel {
  return {
    model,
    hasTeacher: false,
    withTeacher: () => {
      throw new ArgumentError('evaluate: a model without an adapter has no base to compare with');
    },
  };
}

function evaluationText(result: EvaluationResult): string {
  const { loss, perplexity, kl, entropy, effectiveRank, examples, seconds } = result;
  return [
    `loss            ${loss.toFixed(6)}`,
    `perplexity      ${perplexity.toFixed(4)}`,
    `KL to the base  ${kl === null ? 'no adapter' : kl.toFixed(6)}`,
    `entropy         ${entropy.toFixed(6)}`,
    `effective rank  ${effectiveRank.toFixed(2)}`,
    `examples        ${examples.length}, ${result.tokens} tokens, ${result.supervisedTokens} supervised`,
    `time            ${formatSeconds(seconds)}`,
  ].join('\n');
}

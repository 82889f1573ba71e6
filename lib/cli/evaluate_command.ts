/** `balora evaluate`: held-out numbers of a model, with or without an adapter. */
import type { Command } from 'commander';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { ArgumentError } from '../errors.ts';
import { evaluateClassifier } from '../eval/classify.ts';
import { type EvaluatedModel, evaluate } from '../eval/evaluate.ts';
import type { CausalLM } from '../models/index.ts';
import { setNumThreads } from '../runtime.ts';
import type { EvaluationResult } from '../train/types.ts';
import {
  loadClassifier,
  loadTokenizer,
  openLabelled,
  type TrainedHead,
  trainedHead,
  trainedNames,
} from './classifier_load.ts';
import { addOptions, readOptions } from './command_options.ts';
import { classifierText } from './evaluation_view.ts';
import { abortable, kInterrupted } from './interrupt.ts';
import { loadModel, openBatches } from './load.ts';
import type { OptionRow, OptionValues } from './option_table.ts';
import { integer, onOff, text } from './option_types.ts';
import type { CliContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { formatSeconds } from './terminal.ts';
import { kExampleOptions, kLabelOptions, kModelOptions, kTaskOption } from './train_options.ts';
import {
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
    help: 'held-out data, JSON Lines; of a classifier .tsv, .csv or .parquet too',
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
      try {
        return await abortable(
          (signal) =>
            isClassification(settings)
              ? runClassifier(settings, { context, signal })
              : runEvaluate(settings, { context, signal }),
          () => {},
        );
      } catch (error) {
        if ((error as Error).name === 'AbortError') return kInterrupted;
        throw error;
      }
    }),
  );
};

async function runEvaluate(
  settings: EvaluateSettings,
  { context, signal }: { context: CliContext; signal: AbortSignal },
): Promise<number> {
  const progress = new Progress(context.stderr);
  const { dtype, device, adapter, threads } = { ...kTrainDefaults, ...settings };
  if (threads !== undefined) setNumThreads(threads);
  const { model, tokenizer } = await loadModel(settings.model as string, { dtype, device });
  const { batches, close } = await openBatches(settings.data as string, tokenizer, {
    ...exampleOptions(settings),
    batchSize: settings.perDeviceEvalBatchSize ?? kBatchSize,
    shuffle: false,
    progress,
    signal,
  });
  try {
    const tuned = adapter === undefined ? untuned(model) : await AdapterModel.load(model, adapter);
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
  const { dtype, device, adapter, threads, model: path } = { ...kTrainDefaults, ...settings };
  if (threads !== undefined) setNumThreads(threads);
  const head = await trainedHead(path as string, adapter);
  const data = await openLabelled(settings.data as string, await loadTokenizer(path as string), {
    ...labelledOptions(settings),
    ...(await labelsOf(head, settings)),
    columns: listOf(settings.columns),
    batchSize: settings.perDeviceEvalBatchSize ?? kBatchSize,
    shuffle: false,
    progress,
    signal,
  });
  const newHead = head?.inAdapter ?? false;
  const model = await loadClassifier(path as string, data.scheme, { dtype, device, newHead });
  model.checkLength(data.statistics.longest);
  if (adapter !== undefined) await AdapterModel.load(model, adapter);
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
 * The labels are those of the trained head, unless more is said of them: held-out data may lack a class, and its names sorted
 * may then be others' ids.
 * @throws ArgumentError for another number of labels
 */
async function labelsOf(
  head: TrainedHead | null,
  { numLabels, labelNames, glue, adapter, model }: EvaluateSettings,
): Promise<{ numLabels?: number; labelNames?: string[] }> {
  if (head === null) return {};
  const asked = numLabels ?? listOf(labelNames)?.length;
  if (asked !== undefined && asked !== head.labels) {
    const [where, option] = [
      head.inAdapter ? adapter : model,
      numLabels === undefined ? 'label-names' : 'num-labels',
    ];
    throw new ArgumentError(
      `the head in ${where} has ${head.labels} labels, --${option} says ${asked}`,
    );
  }
  if (glue !== undefined || labelNames !== undefined) return {};
  const names = await trainedNames((head.inAdapter ? adapter : model) as string, head.labels);
  return names === null ? { numLabels: head.labels } : { labelNames: names };
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

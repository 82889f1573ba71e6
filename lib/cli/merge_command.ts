/** `balora merge`: an adapter folded into its base, as a model folder of its own. */
import type { Command } from 'commander';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { saveMerged } from '../adapters/merge.ts';
import { adapterTask } from '../adapters/peft_folder.ts';
import type { LabelOptions } from '../data/labels.ts';
import { ArgumentError } from '../errors.ts';
import { isStray, removeTemporaries } from '../io/files.ts';
import { AutoModelForSequenceClassification, type Model } from '../models/index.ts';
import { setNumThreads } from '../runtime.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import { folderNames } from '../train/output.ts';
import { type TrainedHead, trainedHead } from './classifier_load.ts';
import { addOptions, readOptions } from './command_options.ts';
import { loadModel, loadOptions, type ModelLoadOptions, warned } from './load.ts';
import type { OptionRow } from './option_table.ts';
import { text } from './option_types.ts';
import type { CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { kModelOptions } from './train_options.ts';
import { kTrainDefaults } from './train_setup.ts';

const kGroup = 'Model, data and output';

const kMergeOptions = {
  ...kModelOptions,
  adapter: { type: text('folder'), help: 'the PEFT folder', group: kGroup, required: true },
  output: {
    type: text('folder'),
    help: 'where the model is written',
    group: kGroup,
    required: true,
  },
} satisfies Record<string, OptionRow>;

export const addMerge: CommandModule = (program, context, run) => {
  const command = program
    .command('merge')
    .description('fold an adapter into its base and write the model as safetensors');
  addOptions(command, kMergeOptions, { defaults: kTrainDefaults });
  command.action(
    run(async (_: unknown, self: Command) => {
      const progress = new Progress(context.stderr);
      const settings = await readOptions(self, kMergeOptions);
      const { output, adapter, threads } = settings;
      if (threads !== undefined) setNumThreads(threads);
      await refuseFullFolder(output as string);
      const path = settings.model as string;
      const how = loadOptions(settings, progress);
      const { model, tokenizer } = await loadBase(path, {
        adapter: adapter as string,
        progress,
        ...how,
      });
      const loaded = warned(await AdapterModel.load<Model>(model, adapter as string), progress);
      const { maxAbsError, module, relativeToDelta } = await saveMerged(loaded, output as string);
      await tokenizer.save(output as string);
      context.stdout.write(
        `written to ${output}; largest rounding error ${maxAbsError.toExponential(2)} in ${module}, ` +
          `${(100 * relativeToDelta).toPrecision(2)} % of the largest change there\n`,
      );
      return 0;
    }),
  );
};

/** The model that the adapter says it is for; a classifier with what is known of the adapter's head. */
async function loadBase(
  path: string,
  { adapter, progress, ...options }: ModelLoadOptions & { adapter: string; progress: Progress },
): Promise<{ model: Model; tokenizer: Tokenizer }> {
  if ((await adapterTask(adapter)) !== 'SEQ_CLS') return loadModel(path, options);
  const head = await trainedHead(path, { adapter, ...options });
  const newHead = head?.inAdapter ?? false;
  const model = await AutoModelForSequenceClassification.fromPretrained(path, {
    ...(head === null ? {} : labelsOf(head)),
    ...options,
    newHead,
  });
  if (head !== null && head.problemType === null && head.labels > 1) {
    progress.warn(
      `${head.where} does not say what its ${head.labels} outputs mean: ${model.problemType} becomes problem_type of the ` +
        'merged config.json; change it there if they are something else',
    );
  }
  return { model, tokenizer: await Tokenizer.fromPretrained(path, options) };
}

function labelsOf({ labels, names, problemType }: TrainedHead): LabelOptions {
  const meaning = problemType === null ? {} : { problemType };
  return { numLabels: labels, labelNames: names, ...meaning };
}

/** What a killed merge left is taken away; a folder that holds anything else is not touched. */
async function refuseFullFolder(folder: string): Promise<void> {
  const names = await folderNames(folder);
  if (names.every(isStray)) return removeTemporaries(folder);
  throw new ArgumentError(`output folder ${folder} is not empty (${names.slice(0, 4).join(', ')})`);
}

/** `balora merge`: an adapter folded into its base, as a model folder of its own. */
import { readdir } from 'node:fs/promises';
import type { Command } from 'commander';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { saveMerged } from '../adapters/merge.ts';
import { adapterTask } from '../adapters/peft_folder.ts';
import { ArgumentError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import { setNumThreads } from '../runtime.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { loadClassifier, loadTokenizer, trainedHead } from './classifier_load.ts';
import { addOptions, readOptions } from './command_options.ts';
import { loadModel } from './load.ts';
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
      const { dtype, device, output, adapter, threads } = { ...kTrainDefaults, ...settings };
      if (threads !== undefined) setNumThreads(threads);
      await refuseFullFolder(output as string);
      const path = settings.model as string;
      const { model, tokenizer } = await loadBase(path, adapter as string, { dtype, device });
      const loaded = await AdapterModel.load<Model>(model, adapter as string);
      for (const warning of loaded.warnings) progress.warn(warning);
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

/** The model that the adapter says it is for; a classifier with as many labels as the adapter's head. */
async function loadBase(
  path: string,
  adapter: string,
  options: { dtype: 'f32' | 'bf16'; device: string },
): Promise<{ model: Model; tokenizer: Tokenizer }> {
  if ((await adapterTask(adapter)) !== 'SEQ_CLS') return loadModel(path, options);
  const head = await trainedHead(path, adapter);
  const labels = head === null ? {} : { numLabels: head.labels };
  const newHead = head?.inAdapter ?? false;
  return {
    model: await loadClassifier(path, labels, { ...options, newHead }),
    tokenizer: await loadTokenizer(path),
  };
}

async function refuseFullFolder(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => []);
  if (names.length === 0) return;
  throw new ArgumentError(`output folder ${folder} is not empty (${names.slice(0, 4).join(', ')})`);
}

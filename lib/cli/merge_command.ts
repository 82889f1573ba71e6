/** `balora merge`: an adapter folded into its base, as a model folder of its own. */
import { readdir } from 'node:fs/promises';
import type { Command } from 'commander';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { saveMerged } from '../adapters/merge.ts';
import { ArgumentError } from '../errors.ts';
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
      const { dtype, device, output, adapter } = { ...kTrainDefaults, ...settings };
      await refuseFullFolder(output as string);
      const { model, tokenizer } = await loadModel(settings.model as string, { dtype, device });
      const loaded = await AdapterModel.load(model, adapter as string);
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

async function refuseFullFolder(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => []);
  if (names.length === 0) return;
  throw new ArgumentError(`output folder ${folder} is not empty (${names.slice(0, 4).join(', ')})`);
}

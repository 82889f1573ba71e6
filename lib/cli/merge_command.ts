/** `balora merge`: merges an adapter into its base model and writes the result as a model folder. */
import type { Command } from 'commander';
import { type MergeError, saveMerged } from '../adapters/merge.ts';
import { choice } from '../options/kinds.ts';
import { group } from '../options/option.ts';
import { adaptedOptions, loadAdapted } from './adapted_model.ts';
import { addOptions, readOptions } from './command_options.ts';
import type { CommandModule } from './program.ts';
import { Progress } from './progress.ts';

const kMergeOptions = {
  ...adaptedOptions('where the model is written'),
  ...group('Model and data', {
    dtype: choice({
      choices: ['f32', 'bf16', 'f16'],
      default: 'f32',
      help: 'type of the weights that are written; f16 is rounded from a base in f32',
      aliases: ['bf16', 'torch-dtype', 'precision', 'fp16'],
    }),
  }),
};

export const addMerge: CommandModule = (program, context, run) => {
  const command = program
    .command('merge')
    .description('merge an adapter into its base model and write the result as safetensors');
  addOptions(command, kMergeOptions);
  command.action(
    run(kMergeOptions, async (_: unknown, self: Command) => {
      const progress = new Progress(context.stderr);
      const settings = await readOptions(self, kMergeOptions);
      const { output, dtype = 'f32' } = settings;
      const base = { ...settings, dtype: dtype === 'f16' ? 'f32' : dtype } as const;
      const { tuned, tokenizer } = await loadAdapted(base, progress);
      const error = await saveMerged(tuned, output as string, { dtype });
      await tokenizer.savePretrained(output as string);
      const { maxAbsError, module, relativeToDelta } = error;
      const lost = lostInRounding(error, dtype);
      if (lost !== null) progress.warn(lost);
      context.stdout.write(
        `written to ${output}; largest rounding error ${maxAbsError.toExponential(2)} in ${module}, ` +
          `${(100 * relativeToDelta).toPrecision(2)} % of the largest change there\n`,
      );
      return 0;
    }),
  );
};

/** The share of the largest change that rounding may take before a merge gives a warning: half of the bits of the change are gone. */
const kLostShare = 0.25;

/** A warning where rounding to the file's dtype takes a large part of what the adapter changes; else null. */
function lostInRounding({ module, relativeToDelta }: MergeError, dtype: string): string | null {
  if (dtype === 'f32' || !(relativeToDelta > kLostShare)) return null;
  const share = (100 * relativeToDelta).toPrecision(2);
  return (
    `in ${dtype} the merged weights lose a part of what the adapter learned: rounding takes up to ${share} % of its largest change ` +
    `(${module}); merge with --dtype f32, or keep the adapter beside its base`
  );
}

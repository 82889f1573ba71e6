/** `balora merge`: merges an adapter into its base model and writes the result as a model folder. */
import { checkNewOutput } from '../export/output.ts';
import { MAX_SHARD_SIZE } from '../export/registry.ts';
import { roundingText, safetensors, writeMerged } from '../export/safetensors.ts';
import { choice } from '../options/kinds.ts';
import { group } from '../options/option.ts';
import { adaptedOptions, loadAdapted } from './adapted_model.ts';
import { runWithOptions } from './command_options.ts';
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
  runWithOptions(command, kMergeOptions, run, async (settings) => {
    const progress = new Progress(context.stderr);
    const { dtype = 'f32', overwrite } = settings;
    const [output, adapter] = [settings.output, settings.adapter] as [string, string];
    const sources = [settings.model, adapter];
    const names = safetensors.namesOf(true);
    await checkNewOutput(output, 'folder', { overwrite, sources, names });
    const base = { ...settings, dtype: dtype === 'f16' ? 'f32' : dtype } as const;
    const loaded = await loadAdapted(base, progress);
    const warn = (message: string): void => progress.warn(message);
    const settled = { dtype, typeFlag: '--dtype', maxShardSize: MAX_SHARD_SIZE } as const;
    const input = { ...loaded, ...settled, adapter, overwrite, warn };
    const error = await writeMerged(input, output);
    const { blockFormat } = loaded.tuned.model;
    const made =
      blockFormat === null ? '' : `, the values of the blocks (${blockFormat}) with the adapter`;
    context.stdout.write(`written to ${output}${made}; ${roundingText(error)}\n`);
    return 0;
  });
};

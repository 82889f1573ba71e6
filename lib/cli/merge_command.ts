/** `balora merge`: merges an adapter into its base model and writes the result as a model folder. */
import type { Command } from 'commander';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { type MergeError, saveMerged } from '../adapters/merge.ts';
import { adapterTask } from '../adapters/peft_folder.ts';
import { ArgumentError } from '../errors.ts';
import { isAbandoned, removeTemporaries } from '../io/files.ts';
import type { Model } from '../models/index.ts';
import { choice, filePath } from '../options/kinds.ts';
import { group } from '../options/option.ts';
import { setNumThreads } from '../runtime.ts';
import { folderNames } from '../train/output.ts';
import { addOptions, readOptions } from './command_options.ts';
import { adapterOptions, loadOptions, showWarnings } from './load.ts';
import type { CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { CLI_TASKS, cliTaskOfType } from './tasks/list.ts';
import { kModelOptions } from './train_options.ts';

const kMergeOptions = {
  ...kModelOptions,
  ...group('Model and data', {
    dtype: choice({
      choices: ['f32', 'bf16', 'f16'],
      default: 'f32',
      help: 'type of the weights that are written; f16 is rounded from a base in f32',
      aliases: ['bf16', 'torch-dtype', 'precision', 'fp16'],
    }),
    adapter: filePath({
      placeholder: 'folder',
      help: 'the PEFT folder',
      required: true,
      aliases: ['adapter-name-or-path', 'adapter-path', 'lora-path'],
    }),
  }),
  ...group('Output', {
    output: filePath({
      placeholder: 'folder',
      help: 'where the model is written',
      required: true,
      aliases: ['output-dir', 'out', 'save-dir', 'output-folder'],
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
      const { output, adapter, threads } = settings;
      if (threads !== undefined) setNumThreads(threads);
      await requireEmptyFolder(output as string);
      const path = settings.model as string;
      const { dtype = 'f32' } = settings;
      const modelOptions = loadOptions(
        { ...settings, dtype: dtype === 'f16' ? 'f32' : dtype },
        progress,
      );
      const task = cliTaskOfType((await adapterTask(adapter as string)) ?? 'CAUSAL_LM');
      const { model, tokenizer } = await (task ?? CLI_TASKS['causal-lm']).loadBase(path, {
        adapter: adapter as string,
        progress,
        ...modelOptions,
      });
      const loaded = showWarnings(
        await AdapterModel.fromPretrained<Model>(
          model,
          adapter as string,
          adapterOptions(settings),
        ),
        progress,
      );
      const error = await saveMerged(loaded, output as string, { dtype });
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

/** Removes temporary files that a killed merge left behind, and refuses a folder that holds anything else. */
async function requireEmptyFolder(folder: string): Promise<void> {
  const names = await folderNames(folder);
  if (names.every(isAbandoned)) return removeTemporaries(folder);
  throw new ArgumentError(
    `output folder ${folder} is not empty (${names.slice(0, 4).join(', ')}); choose another one`,
  );
}

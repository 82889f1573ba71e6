/** A model with its adapter, for the commands that write something made of both: `merge` and `export`. */
import { adapterTask } from '../adapters/adapter_folder.ts';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { ArgumentError } from '../errors.ts';
import { isAbandoned, removeTemporaries } from '../io/files.ts';
import type { Model } from '../models/index.ts';
import { filePath } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import { setNumThreads } from '../runtime.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { folderNames } from '../train/output.ts';
import { adapterOptions, loadOptions, showWarnings } from './load.ts';
import type { Progress } from './progress.ts';
import { CLI_TASKS, cliTaskOfType } from './tasks/list.ts';
import { adapterOption, kModelOptions } from './train_options.ts';

/** The options of these commands, with the help of `output`. */
export function adaptedOptions(output: string) {
  return {
    ...kModelOptions,
    ...group('Model and data', { adapter: adapterOption('the adapter', { required: true }) }),
    ...group('Output', {
      output: filePath({
        placeholder: 'folder',
        help: output,
        required: true,
        aliases: ['output-dir', 'out', 'save-dir', 'output-folder'],
      }),
    }),
  };
}

export type AdaptedSettings = ValuesOf<ReturnType<typeof adaptedOptions>>;

/** Loads the model and the adapter that the settings name, once it is known that the output folder can be written. */
export async function loadAdapted(
  settings: AdaptedSettings,
  progress: Progress,
): Promise<{ tuned: AdapterModel<Model>; tokenizer: Tokenizer }> {
  const { threads } = settings;
  const [path, adapter, output] = [settings.model, settings.adapter, settings.output] as string[];
  if (threads !== undefined) setNumThreads(threads);
  await requireEmptyFolder(output as string);
  const task = cliTaskOfType((await adapterTask(adapter as string)) ?? 'CAUSAL_LM');
  const { model, tokenizer } = await (task ?? CLI_TASKS['causal-lm']).loadBase(path as string, {
    adapter: adapter as string,
    progress,
    ...loadOptions(settings, progress),
  });
  const tuned = await AdapterModel.fromPretrained<Model>(
    model,
    adapter as string,
    adapterOptions(settings),
  );
  return { tuned: showWarnings(tuned, progress), tokenizer };
}

/** Removes temporary files that a killed command left behind, and refuses a folder that holds anything else. */
async function requireEmptyFolder(folder: string): Promise<void> {
  const names = await folderNames(folder);
  if (names.every(isAbandoned)) return removeTemporaries(folder);
  throw new ArgumentError(
    `output folder ${folder} is not empty (${names.slice(0, 4).join(', ')}); choose another one`,
  );
}

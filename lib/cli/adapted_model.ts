/** A model with its adapter, for the commands that write something made of both: `merge` and `export`. */
import { adapterTask } from '../adapters/adapter_folder.ts';
import { AdapterModel } from '../adapters/adapter_model.ts';
import type { ModelAlone } from '../export/target.ts';
import type { Model } from '../models/index.ts';
import { filePath, onOff } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import { setNumThreads } from '../runtime.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { adapterOptions, loadOptions, showWarnings, tellQuantization } from './load.ts';
import type { Progress } from './progress.ts';
import { CLI_TASKS, cliTaskOfType } from './tasks/list.ts';
import { adapterOption, kModelOptions } from './train_options.ts';

/** Help of `--overwrite`: the files that it replaces. */
export const REPLACED = 'replace what an earlier export wrote there, and nothing else';

/**
 * The options of these commands, with the help of `output`.
 * @param required whether there must be an adapter
 * @param replaced the help of `overwrite`
 */
export function adaptedOptions(output: string, { required = true, replaced = REPLACED } = {}) {
  return {
    ...kModelOptions,
    ...group('Model and data', { adapter: adapterOption('the adapter', { required }) }),
    ...newOutputOptions(output, replaced),
  };
}

/** The options of what a command writes, with the help of `output`. */
export function newOutputOptions(output: string, replaced = REPLACED) {
  return group('Output', {
    output: filePath({
      placeholder: 'folder',
      help: output,
      required: true,
      aliases: ['output-dir', 'out', 'save-dir', 'output-folder'],
    }),
    overwrite: onOff({
      help: replaced,
      aliases: ['overwrite-output-dir', 'force'],
    }),
  });
}

export type AdaptedSettings = ValuesOf<ReturnType<typeof adaptedOptions>>;

/** Loads the model and the adapter that the settings name, or the model alone where they name none. */
export async function loadAdaptedOrAlone(
  settings: AdaptedSettings,
  progress: Progress,
): Promise<{ tuned: AdapterModel<Model> | ModelAlone; tokenizer: Tokenizer }> {
  if (settings.adapter !== undefined) return loadAdapted(settings, progress);
  if (settings.threads !== undefined) setNumThreads(settings.threads);
  const { model, tokenizer } = await CLI_TASKS['causal-lm'].loadBase(settings.model as string, {
    progress,
    ...loadOptions(settings, progress),
  });
  tellQuantization(model, progress);
  return { tuned: { kind: 'model', model }, tokenizer };
}

/** Loads the model and the adapter that the settings name. */
export async function loadAdapted(
  settings: AdaptedSettings,
  progress: Progress,
): Promise<{ tuned: AdapterModel<Model>; tokenizer: Tokenizer }> {
  const { threads } = settings;
  const [path, adapter] = [settings.model, settings.adapter] as string[];
  if (threads !== undefined) setNumThreads(threads);
  const task = cliTaskOfType((await adapterTask(adapter as string)) ?? 'CAUSAL_LM');
  const { model, tokenizer } = await (task ?? CLI_TASKS['causal-lm']).loadBase(path as string, {
    adapter: adapter as string,
    progress,
    ...loadOptions(settings, progress),
  });
  tellQuantization(model, progress);
  const tuned = await AdapterModel.fromPretrained<Model>(
    model,
    adapter as string,
    adapterOptions(settings),
  );
  return { tuned: showWarnings(tuned, progress), tokenizer };
}

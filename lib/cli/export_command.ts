/** `balora export`: writes a model with its adapter, such as that of a checkpoint, for another program. */
import { join } from 'node:path';
import { ADAPTER_CONFIG, ADAPTER_TENSORS, RESIDUAL_BASE } from '../adapters/peft_folder.ts';
import { ArgumentError } from '../errors.ts';
import { checkNewOutput, fillFolder } from '../export/output.ts';
import {
  EXPORT_TARGET_NAMES,
  exportModel,
  exportTarget,
  MAX_SHARD_SIZE,
  OUT_TYPES,
  outtypeOf,
} from '../export/registry.ts';
import { needsAdapter } from '../export/target.ts';
import { TOKENIZER_FILES } from '../io/model_folder.ts';
import { readText } from '../io/regular_file.ts';
import { choice, filePath, size } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import { outputOptions } from '../train/schema.ts';
import { adaptedOptions, loadAdaptedOrAlone, REPLACED } from './adapted_model.ts';
import { runWithOptions } from './command_options.ts';
import type { CommandContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';

export const kExportOptions = {
  ...adaptedOptions('where the export is written: a folder, or for gguf and gguf-lora a file', {
    required: false,
    replaced: `${REPLACED}; a file only where it is a GGUF file`,
  }),
  ...group('Output', {
    to: choice({
      choices: EXPORT_TARGET_NAMES,
      default: 'peft',
      help: 'the form that is written',
      aliases: ['format', 'target'],
    }),
    outtype: choice({
      choices: OUT_TYPES,
      help: 'type of the weights that are written; default: f32, for gguf f16',
      aliases: ['quantization', 'quant'],
    }),
    maxShardSize: size({
      words: ['none'],
      default: null,
      help: `safetensors: largest file of weights; default: ${MAX_SHARD_SIZE / 1e9}GB`,
    }),
    klText: filePath({
      placeholder: 'file',
      help: 'gguf, modelfile: a text on which the divergence (KL) of the file from F32 is measured',
    }),
  }),
  export: outputOptions.export,
};

export const addExport: CommandModule = (program, context, run) => {
  const command = program
    .command('export')
    .description(
      'write an adapter, such as that of a checkpoint, its merged model, or a model without one for another program',
    );
  runWithOptions(command, kExportOptions, run, (settings) => exportTo(settings, context));
};

type ExportSettings = ValuesOf<typeof kExportOptions>;

async function exportTo(settings: ExportSettings, context: CommandContext): Promise<number> {
  const { to = 'peft', export: form = 'lora', outtype } = settings;
  const { output, adapter } = settings as typeof settings & { output: string };
  const target = exportTarget(to);
  if (target.ofAdapter && adapter === undefined) throw needsAdapter(to);
  if (form !== 'lora' && to !== 'peft') {
    throw new ArgumentError(`export "${form}" is a form of --to peft, got --to ${to}`);
  }
  outtypeOf(target, outtype);
  if (settings.klText !== undefined && to !== 'gguf' && to !== 'modelfile') {
    throw new ArgumentError(`klText is for --to gguf and modelfile, got --to ${to}`);
  }
  const klText = settings.klText === undefined ? null : await readText(settings.klText);
  const { overwrite } = settings;
  const sources = [settings.model, adapter, settings.klText];
  const names = {
    lora: target.namesOf(adapter !== undefined),
    'plain-lora': TOKENIZER_FILES,
    residual: [],
  }[form];
  await checkNewOutput(output, target.output, { overwrite, sources, names });
  const progress = new Progress(context.stderr);
  const { tuned, tokenizer } = await loadAdaptedOrAlone(settings, progress);
  if (tuned.kind === 'adapter') tuned.checkForm(form);
  const lines: string[] = [];
  if (form !== 'lora' && tuned.kind === 'adapter') {
    const fill = async (folder: string): Promise<void> => {
      await tuned.savePretrained(folder, { form, place: output });
      // A base that was read from a GGUF file has no tokenizer files to copy.
      await tokenizer.savePretrained(form === 'residual' ? join(folder, RESIDUAL_BASE) : folder);
    };
    await fillFolder(output, fill, [ADAPTER_TENSORS, ADAPTER_CONFIG], { overwrite });
  } else {
    const { maxShardSize } = settings;
    const most = maxShardSize === 'none' ? Number.POSITIVE_INFINITY : (maxShardSize ?? undefined);
    const warn = (message: string): void => progress.warn(message);
    const source = { tuned, tokenizer, adapter: adapter ?? null, overwrite };
    const input = { ...source, outtype, maxShardSize: most, klText, warn };
    lines.push(...(await exportModel(target, input, output)));
  }
  // The place comes last, where it is seen: of a file in blocks there is a line for each tensor.
  const next = form === 'lora' ? (target.next?.(output) ?? []) : [];
  context.stdout.write(`${[...lines, `written to ${output}`, ...next].join('\n')}\n`);
  return 0;
}

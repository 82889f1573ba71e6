/** `balora quantize`: writes a language model whose linear weights are quantised to NF4, as a folder that transformers loads. */
import { ArgumentError } from '../errors.ts';
import { checkNewOutput, fillFolder } from '../export/output.ts';
import { writeTokenizer } from '../export/tokenizer_files.ts';
import { kBlockSize } from '../io/blocks.ts';
import { COMPANIONS, SINGLE_WEIGHTS } from '../io/model_folder.ts';
import { storedForm } from '../models/auto.ts';
import { AutoModelForCausalLM, checkCausalLM } from '../models/index.ts';
import { type Nf4Result, saveNf4 } from '../models/save_nf4.ts';
import { onOff, whole } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import { setNumThreads } from '../runtime.ts';
import { newOutputOptions } from './adapted_model.ts';
import { runWithOptions } from './command_options.ts';
import { loadOptions, openModel } from './load.ts';
import type { CommandContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { kModelOptions } from './train_options.ts';

const kQuantizeOptions = {
  model: kModelOptions.model,
  dtype: kModelOptions.dtype,
  threads: kModelOptions.threads,
  ignoreKeys: kModelOptions.ignoreKeys,
  ...newOutputOptions('where the model is written'),
  ...group('Output', {
    blockSize: whole({
      least: 2,
      default: kBlockSize,
      help: 'weights that share a factor, an even number',
      aliases: ['blocksize', 'group-size'],
    }),
    doubleQuant: onOff({
      help: 'quantise the factors to 8 bits, too: 4.13 bits a weight in place of 4.5',
      aliases: ['bnb-4bit-use-double-quant', 'use-double-quant', 'double-quantization'],
    }),
  }),
};

export const addQuantize: CommandModule = (program, context, run) => {
  const command = program
    .command('quantize')
    .description('write a language model with its linear weights in NF4, as bitsandbytes has them');
  runWithOptions(command, kQuantizeOptions, run, (settings) => quantize(settings, context));
};

async function quantize(
  settings: ValuesOf<typeof kQuantizeOptions>,
  context: CommandContext,
): Promise<number> {
  const { blockSize = kBlockSize, doubleQuant = false, threads: count, overwrite } = settings;
  const [path, output] = [settings.model, settings.output] as [string, string];
  if (blockSize % 2 !== 0) {
    throw new ArgumentError(`--block-size must be an even number, got ${blockSize}`);
  }
  await checkNewOutput(output, 'folder', { overwrite, sources: [path], names: COMPANIONS });
  if (count !== undefined) setNumThreads(count);
  const progress = new Progress(context.stderr);
  const options = loadOptions(settings, progress);
  const { folder, tokenizer } = await openModel(path, checkCausalLM, options);
  const form = await storedForm(folder, options);
  if (form !== null) {
    throw new ArgumentError(
      `${folder} is quantised already, to ${form}, and would lose more in NF4; quantise the model that it was made from`,
    );
  }
  const model = await AutoModelForCausalLM.fromPretrained(folder, options);
  const fill = async (temporary: string): Promise<Nf4Result> => {
    const written = await saveNf4(model, temporary, { blockSize, doubleQuant });
    await writeTokenizer(model, tokenizer, temporary);
    return written;
  };
  const last = [SINGLE_WEIGHTS, 'config.json'];
  const { quantized, error } = await fillFolder(output, fill, last, { overwrite });
  model.dispose();
  progress.clear();
  context.stdout.write(
    `written to ${output}; ${quantized} weights in NF4, with a relative error of up to ${(100 * error).toPrecision(2)} %\n`,
  );
  return 0;
}

/** `balora convert`: writes an adapter of any method as a plain LoRA, of its own ranks or of chosen ones. */
import {
  type ConvertedModule,
  DEFAULT_ENERGY,
  type RankChoice,
  rankChoice,
} from '../adapters/convert.ts';
import { ADAPTER_CONFIG, ADAPTER_TENSORS } from '../adapters/peft_folder.ts';
import { ArgumentError } from '../errors.ts';
import { checkNewOutput, fillFolder } from '../export/output.ts';
import { writeTokenizer } from '../export/tokenizer_files.ts';
import { TOKENIZER_FILES } from '../io/model_folder.ts';
import { choice, number, onOff, whole } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import { adaptedOptions, loadAdapted } from './adapted_model.ts';
import { runWithOptions } from './command_options.ts';
import type { CommandContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';

/** PEFT's default of mitigation_lambda. */
const kIntruderFactor = 0.75;

const kConvertOptions = {
  ...adaptedOptions('where the adapter is written'),
  ...group('Output', {
    to: choice({ choices: ['lora'], default: 'lora', help: 'the method that is written' }),
    rank: whole({
      least: 1,
      help: `rank of every module; default: the adapter's own where that is exact, and otherwise that of --energy ${DEFAULT_ENERGY}`,
    }),
    energy: number({
      least: 0,
      above: true,
      most: 1,
      help: "share of each module's squared singular values that is kept, from which its rank follows",
    }),
    reduceIntruderDimensions: onOff({
      default: false,
      help: `multiply the intruder dimensions of each tuned weight by ${kIntruderFactor}`,
    }),
  }),
};

export const addConvert: CommandModule = (program, context, run) => {
  const command = program
    .command('convert')
    .description(
      'write an adapter of any method as a plain LoRA, of its own ranks or of chosen ones',
    );
  runWithOptions(command, kConvertOptions, run, (settings) => convert(settings, context));
};

async function convert(
  settings: ValuesOf<typeof kConvertOptions>,
  context: CommandContext,
): Promise<number> {
  const { rank, energy, reduceIntruderDimensions = false, overwrite } = settings;
  const output = settings.output as string;
  if (rank !== undefined && energy !== undefined) {
    throw new ArgumentError('convert takes --rank or --energy, not both; leave one of them out');
  }
  await checkNewOutput(output, 'folder', {
    overwrite,
    sources: [settings.model, settings.adapter],
    names: TOKENIZER_FILES,
  });
  const progress = new Progress(context.stderr);
  const { tuned, tokenizer } = await loadAdapted(settings, progress);
  const intruderFactor = reduceIntruderDimensions ? kIntruderFactor : 1;
  const choice = rankChoice(tuned, { rank, energy, intruderFactor });
  const fill = async (folder: string): Promise<readonly ConvertedModule[]> => {
    const converted = await tuned.convertToLora(folder, {
      ...{ rank, energy, intruderFactor },
      onProgress: (done, all) => progress.status(`converting: ${done} of ${all} modules`),
    });
    await writeTokenizer(tuned.model, tokenizer, folder);
    return converted;
  };
  const converted = await fillFolder(output, fill, [ADAPTER_TENSORS, ADAPTER_CONFIG], {
    overwrite,
  });
  progress.clear();
  const lines = [
    `written to ${output}`,
    ...reportOf(converted, reduceIntruderDimensions),
    ...choiceOf(choice),
  ];
  context.stdout.write(`${lines.join('\n')}\n`);
  return 0;
}

/** Ranks and errors as lines for the user. */
function reportOf(converted: readonly ConvertedModule[], reduced: boolean): string[] {
  const changed = converted.filter(({ r }) => r > 0);
  const ranks = changed.map(({ r }) => r);
  const worst = changed.reduce(
    (a, b) => (b.error > a.error ? b : a),
    changed[0] as ConvertedModule,
  );
  const intruders = converted.reduce((sum, one) => sum + one.intruders, 0);
  const lines = [
    changed.length === 0
      ? 'the adapter changes nothing'
      : `${changed.length} modules of ranks ${Math.min(...ranks)} to ${Math.max(...ranks)}; largest error ` +
        `${(100 * worst.error).toPrecision(2)} % of what the adapter changes, in ${worst.name}`,
  ];
  const left = converted.length - changed.length;
  if (changed.length > 0 && left > 0) lines.push(`${left} modules without a change are left out`);
  if (reduced) lines.push(`${intruders} intruder dimensions reduced`);
  return lines;
}

/** A line about ranks that were not given. */
function choiceOf(choice: RankChoice): string[] {
  if (choice.by === 'own') return ["ranks: the adapter's own, at which a plain LoRA equals it"];
  if (choice.by === 'rank' || choice.reason === null) return [];
  return [
    `ranks: those of --energy ${choice.energy}, since none of the adapter's own is exact: ${choice.reason}`,
  ];
}

/** `balora inspect`: shows the tensors of a model or adapter, or the tokens of an example. */
import type { Command } from 'commander';
import { supervisedCount, truncate } from '../data/example.ts';
import { chooseFormats, type ExampleFormat } from '../data/example_format.ts';
import { filePath, onOff, whole } from '../options/kinds.ts';
import { group, type ValuesOf } from '../options/option.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import { addOptions, readOptions } from './command_options.ts';
import { openData } from './load.ts';
import { listOf } from './option_table.ts';
import type { CliContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { listTensors, tensorTable } from './tensor_view.ts';
import { hasColour, styler } from './terminal.ts';
import { colouredTokens, tokenTable } from './token_view.ts';
import { kExampleOptions, kLabelOptions, kTrainDefaults } from './train_options.ts';

const kRow = 0;

const kInspectOptions = {
  ...group('Examples', {
    data: filePath({
      placeholder: 'file',
      help: 'show the tokens of a row of this file: .tsv, .csv, .parquet, JSON Lines or a JSON array',
    }),
    row: whole({ least: 0, default: kRow, help: 'number of the row, from 0', aliases: ['index'] }),
    table: onOff({ help: 'one line per token, also on a terminal' }),
  }),
  ...kExampleOptions,
  textField: { ...kLabelOptions.textField, group: 'Examples' },
};

type InspectSettings = ValuesOf<typeof kInspectOptions>;

export const addInspect: CommandModule = (program, context, run) => {
  const command = program
    .command('inspect')
    .description("a model's or adapter's tensors; with --data the tokens of an example")
    .argument(
      '<path>',
      'a model folder, an adapter folder, a .gguf or .safetensors file, a hub id',
    );
  addOptions(command, kInspectOptions);
  command.action(
    run(kInspectOptions, async (path: string, _: unknown, self: Command) => {
      const settings = await readOptions(self, kInspectOptions);
      if (settings.data !== undefined) await showExample(path, settings.data, settings, context);
      else {
        const { download: onDownload } = new Progress(context.stderr);
        context.stdout.write(`${tensorTable(await listTensors(path, { onDownload }))}\n`);
      }
      return 0;
    }),
  );
};

async function showExample(
  path: string,
  data: string,
  settings: InspectSettings,
  { stdout, stderr }: CliContext,
): Promise<void> {
  const { row: index = kRow, table = false, columns, ...format } = settings;
  const { maxLength = kTrainDefaults.maxLength } = settings;
  const { download: onDownload } = new Progress(stderr);
  const tokenizer = await Tokenizer.fromPretrained(path, { onDownload });
  const rows = await openData(data, { columns: listOf(columns) });
  try {
    const [chosen] = (await chooseFormats(rows, tokenizer, format)) as [ExampleFormat];
    const row = await rows.row(index);
    const whole = await tokenizer.withLongTexts(() => chosen.encode(row));
    const example = truncate(whole, maxLength);
    const colour = hasColour(stdout) && !table;
    const view = colour ? colouredTokens(tokenizer, example) : tokenTable(tokenizer, example);
    const style = styler(hasColour(stdout));
    const cut = whole.ids.length - example.ids.length;
    const summary =
      `${await rows.where(index)} (${chosen.description}): ${example.ids.length} tokens, ` +
      `${supervisedCount(example)} supervised${cut > 0 ? `, ${cut} cut off` : ''}`;
    stdout.write(`${style(summary, 'bold')}\n${view}\n`);
  } finally {
    await rows.close();
  }
}

/** `balora inspect`: shows the tensors of a model or adapter, what an adapter changes in its base, or the tokens of an example. */
import type { Command } from 'commander';
import { DATA_DEFAULTS } from '../data/data_options.ts';
import { supervisedCount, truncate } from '../data/example.ts';
import { chooseFormats, type ExampleFormat } from '../data/example_format.ts';
import { openRows } from '../data/open_rows.ts';
import { ArgumentError } from '../errors.ts';
import { adapterChanges } from '../eval/adapter_changes.ts';
import { filePath, onOff, whole } from '../options/kinds.ts';
import { group, kebab, type ValuesOf } from '../options/option.ts';
import { oneLine, printable } from '../shown.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import { loadAdapted } from './adapted_model.ts';
import { changeTable } from './change_view.ts';
import { addOptions, readOptions } from './command_options.ts';
import { listOf } from './option_table.ts';
import type { CliContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { describeAdapter, listTensors, tensorTable } from './tensor_view.ts';
import { hasColour, styler } from './terminal.ts';
import { colouredTokens, tokenTable } from './token_view.ts';
import { kExampleOptions, kLabelOptions, kModelOptions } from './train_options.ts';

const kRow = 0;

const { required: _, ...kBase } = kModelOptions.model;

const kInspectOptions = {
  ...kModelOptions,
  ...group('Model and data', {
    model: {
      ...kBase,
      help: 'the base of an adapter, to show what it changes: a model folder, a GGUF file or a hub id',
    },
    intruders: onOff({
      default: true,
      help: 'with --model: count intruder dimensions',
      helpOff: 'with --model: do not count intruder dimensions, which takes two thirds of the time',
    }),
  }),
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

/** Options that only `--model` reads. */
const kOfChanges = [
  ...(Object.keys(kModelOptions) as (keyof typeof kModelOptions)[]).filter(
    (name) => name !== 'model',
  ),
  'intruders',
] as const;

export const addInspect: CommandModule = (program, context, run) => {
  const command = program
    .command('inspect')
    .description(
      "a model's or adapter's tensors; with --model what an adapter changes in its base; with --data the tokens of an example",
    )
    .argument(
      '<path>',
      'a model folder, an adapter folder, a .gguf or .safetensors file, a hub id',
    );
  addOptions(command, kInspectOptions);
  command.action(
    run(kInspectOptions, async (path: string, _: unknown, self: Command) => {
      const settings = await readOptions(self, kInspectOptions);
      checkKind(settings);
      if (settings.data !== undefined) await showExample(path, settings.data, settings, context);
      else if (settings.model !== undefined) await showChanges(path, settings, context);
      else {
        const { download: onDownload } = new Progress(context.stderr);
        context.stdout.write(`${tensorTable(await listTensors(path, { onDownload }))}\n`);
      }
      return 0;
    }),
  );
};

/** Refuses options of different views. @throws ArgumentError */
function checkKind(settings: InspectSettings): void {
  const { data, model } = settings;
  if (data !== undefined && model !== undefined) {
    throw new ArgumentError(
      '--data shows the tokens of a row, --model what an adapter changes in that base; leave one of them out',
    );
  }
  if (model !== undefined) return;
  const idle = kOfChanges.find((name) => settings[name] !== undefined);
  if (idle !== undefined) {
    throw new ArgumentError(`--${kebab(idle)} needs --model, the base of the adapter`);
  }
}

async function showChanges(
  adapter: string,
  settings: InspectSettings,
  { stdout, stderr }: CliContext,
): Promise<void> {
  const progress = new Progress(stderr);
  const { tuned } = await loadAdapted({ ...settings, adapter }, progress);
  const changes = await adapterChanges(tuned, {
    intruders: settings.intruders ?? true,
    onProgress: (done, all) => progress.status(`decomposing: ${done} of ${all} modules`),
  });
  progress.clear();
  const saved = tuned.saved?.parameters.map(({ name }) => name) ?? [];
  stdout.write(`${printable(describeAdapter(tuned.config))}\n${changeTable(changes, saved)}\n`);
}

async function showExample(
  path: string,
  data: string,
  settings: InspectSettings,
  { stdout, stderr }: CliContext,
): Promise<void> {
  const { row: index = kRow, table = false, columns, ...format } = settings;
  const { maxLength = DATA_DEFAULTS.maxLength } = settings;
  const { download: onDownload } = new Progress(stderr);
  const tokenizer = await Tokenizer.fromPretrained(path, { onDownload });
  const rows = await openRows(data, { columns: listOf(columns) });
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
    stdout.write(`${style(oneLine(summary), 'bold')}\n${view}\n`);
  } finally {
    await rows.close();
  }
}

/**
 * The command behind `npm run bench`: it prints each row as it is measured and a table at the end, writes the report as JSON to a
 * file, and compares it with an earlier report.
 */
import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Command } from 'commander';
import { addOptions, readOptions } from '../../lib/cli/command_options.ts';
import type { CliContext, CommandModule } from '../../lib/cli/program.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { writeFileAtomic } from '../../lib/io/files.ts';
import { choice, names, number, text, whole } from '../../lib/options/kinds.ts';
import { group, type ValuesOf } from '../../lib/options/option.ts';
import { compareReports, readReport } from './compare.ts';
import type { BenchOptions } from './options.ts';
import { runBench } from './run.ts';
import { kShapeNames } from './shapes.ts';
import { comparisonText, reportText } from './tables.ts';
import type { Report } from './types.ts';

/** Default path of the report, relative to the root of the clone, where npm runs its scripts. */
const kOutput = 'build/bench/latest.json';
const kMargin = 0.1;

const kBenchOptions = {
  ...group('What', {
    only: {
      ...names({
        help: 'rows (balora-4x512, a beginning with *) or groups: all, steps, micro, pissa, decode, start, methods, growth, growth-bases',
      }),
      default: 'all',
    },
    dtype: choice({
      choices: ['bf16', 'f32'],
      default: 'bf16',
      help: 'type of base and activations',
    }),
    shape: choice({
      choices: kShapeNames,
      default: 'smollm2-135m',
      help: 'shape of the random weights',
    }),
    device: text({ placeholder: 'device', help: 'cpu, cuda or cuda:N' }),
    model: text({ placeholder: 'path', help: 'a model instead of random weights' }),
    data: text({
      placeholder: 'file',
      help: "GSM8K's train.jsonl for the gsm8k rows (with --model); else rows of the same lengths",
    }),
    steps: whole({ least: 1, default: 5, help: 'measured steps of a training row' }),
  }),
  ...group('Against', {
    torch: text({
      placeholder: 'python',
      help: 'a Python with torch: run the PyTorch recipe in turns with balora and report the ratio',
    }),
    pairs: whole({ least: 1, default: 3, help: 'pairs of runs beside torch' }),
    torchSteps: whole({
      least: 1,
      default: 2,
      help: "measured steps of each of torch's runs; on rows of many lengths as many as balora's",
    }),
    compare: text({
      placeholder: 'file',
      help: 'an earlier JSON: show ratios, fail on a regression past the margin',
    }),
    margin: number({ least: 0, default: kMargin, help: 'share by which a figure may be worse' }),
  }),
  ...group('Output', {
    json: text({
      placeholder: 'file',
      default: kOutput,
      help: 'where the JSON goes; - for standard output alone',
    }),
  }),
};

type BenchSettings = ValuesOf<typeof kBenchOptions>;

/** Adds the command to a program. The usage line in its help is that of a clone, `npm run bench`. */
export const addBench: CommandModule = (program, context, run) => {
  const command = program
    .name('npm run')
    .command('bench')
    .usage('-- [options]')
    .description('measure speed and memory of training and of the kernels on this machine');
  addOptions(command, kBenchOptions);
  command.action(
    run(kBenchOptions, async (_: unknown, self: Command) =>
      bench(await readOptions(self, kBenchOptions), context),
    ),
  );
};

async function bench(settings: BenchSettings, { stdout, stderr }: CliContext): Promise<number> {
  const { compare, margin = kMargin, json = kOutput, only, ...rest } = settings;
  const before = compare === undefined ? null : await readReport(compare); // a bad file fails before anything is measured
  if (json !== '-') await makeFolderOf(json); // and so does a bad folder
  const report = await runBench({
    ...(rest as Omit<BenchOptions, 'only'>),
    ...(only === undefined ? {} : { only: typeof only === 'string' ? [only] : only }),
    onProgress: (name) => stderr.write(`measuring ${name}\n`),
  });
  await write(report, json, stdout);
  if (before === null) return 0;
  const compared = compareReports(before, report, margin);
  const target = json === '-' ? stderr : stdout;
  target.write(`\n${comparisonText(compared, margin)}\n`);
  // Reports without a common row do not show that nothing got worse: that is a failure, too.
  const { comparisons } = compared;
  return comparisons.length === 0 || comparisons.some(({ regression }) => regression) ? 1 : 0;
}

/** @throws ArgumentError */
async function makeFolderOf(json: string): Promise<void> {
  try {
    await mkdir(dirname(json), { recursive: true });
  } catch (error) {
    throw new ArgumentError(
      `--json ${json}: its folder cannot be made (${(error as Error).message})`,
    );
  }
}

async function write(report: Report, json: string, stdout: CliContext['stdout']): Promise<void> {
  const text = `${JSON.stringify(report, null, 2)}\n`;
  if (json === '-') {
    stdout.write(text);
    return;
  }
  stdout.write(`${reportText(report)}\n`);
  await writeFileAtomic(json, text);
  stdout.write(`\nwritten to ${json}\n`);
}

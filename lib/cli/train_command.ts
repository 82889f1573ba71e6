/** `balora train`: makes a Trainer from the settings and shows its events on the terminal. */
import type { Command } from 'commander';
import { unmet } from '../options/requirements.ts';
import { setNumThreads } from '../runtime.ts';
import { checkOutput } from '../train/output.ts';
import { Trainer, type TrainerOptions } from '../train/trainer.ts';
import type { TrainResult } from '../train/types.ts';
import { addOptions, keysOfFile, readOptions } from './command_options.ts';
import { exampleText } from './example_view.ts';
import { abortable, type Interrupt, interruptOf } from './interrupt.ts';
import { dataText, planText } from './plan_view.ts';
import type { CommandContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import type { RunContext } from './tasks/cli_task.ts';
import { cliTaskOf } from './tasks/list.ts';
import { formatSeconds, hasColour } from './terminal.ts';
import { kBatchSizes, kTrainOptions, type TrainSettings } from './train_options.ts';
import { trainSetup } from './train_setup.ts';

export const addTrain: CommandModule = (program, context, run) => {
  const command = program.command('train').description('fine-tune a model');
  addOptions(command, kTrainOptions, { config: true });
  command.action(
    run(kTrainOptions, async (_: unknown, self: Command) => {
      const settings = await readOptions(self, kTrainOptions);
      return train(settings, { ...context, fromFile: keysOfFile(self, settings) });
    }),
  );
};

async function train(settings: TrainSettings, context: TrainCommand): Promise<number> {
  const progress = new Progress(context.stderr);
  let begun = false;
  const onBegin = () => {
    begun = true;
  };
  const stopping = () => {
    const when = begun ? 'after this micro-batch' : 'before the first step';
    const kept = begun && settings.output !== undefined ? ', from where --resume continues' : '';
    return `stopping ${when}${kept} (interrupt again to quit at once)`;
  };
  try {
    return await abortable(
      (signal) => run(settings, { context, progress, signal, onBegin }),
      () => progress.message(stopping()),
    );
  } catch (error) {
    const interrupt = interruptOf(error);
    if (interrupt === null) throw error;
    const hint = settings.resume
      ? 'run the same command to continue'
      : 'run it again to begin anew';
    progress.message(`stopped before the first step, nothing was written; ${hint}`);
    return interrupt.exitCode;
  } finally {
    progress.clear();
  }
}

/** The context of the command, and the options that its configuration file gives. */
interface TrainCommand extends CommandContext {
  readonly fromFile: ReadonlySet<string>;
}

interface TrainContext extends RunContext {
  readonly context: TrainCommand;
  /** Called when training itself begins; from then on there may be steps to save when it is interrupted. */
  readonly onBegin: () => void;
}

async function run(
  settings: TrainSettings,
  { context, progress, signal, onBegin }: TrainContext,
): Promise<number> {
  const setup = trainSetup(settings, context.fromFile);
  if (settings.threads !== undefined) setNumThreads(settings.threads);
  if (settings.output !== undefined && !settings.dryRun) {
    const { overwrite = false, resume = false } = settings;
    await checkOutput(settings.output, { overwrite, resume });
  }
  // The warning comes before the model is loaded, so that a user can stop the command early.
  if (settings.output === undefined && !settings.dryRun) {
    progress.warn('without --output nothing is saved');
  }
  for (const message of unmet(kBatchSizes, settings)) progress.warn(message);
  const prepared = await cliTaskOf(settings).prepare(settings, setup, { progress, signal });
  const { input, tokenizer, statistics, format, close } = prepared;
  try {
    const commandLine = context.args;
    const trainer = new Trainer({ ...(input as TrainerOptions), commandLine }, prepared.run);
    if (settings.dryRun) {
      const plan = await trainer.plan({ measure: true });
      context.stdout.write(`${planText(plan, statistics, format)}\n`);
      const colour = hasColour(context.stdout);
      for (const example of await prepared.examples()) {
        context.stdout.write(`\n${exampleText(example, { tokenizer, colour })}\n`);
      }
      return 0;
    }
    progress.message(`data: ${dataText(statistics, format)}`);
    signal.throwIfAborted();
    onBegin();
    const events = trainer.run();
    for (;;) {
      const { value, done } = await events.next();
      if (done) return report(value, settings, { progress, signal });
      progress.show(value);
    }
  } finally {
    await close();
  }
}

function report(
  result: TrainResult,
  settings: TrainSettings,
  { progress, signal }: RunContext,
): number {
  progress.clear();
  const { reason, steps, elapsedSeconds, output, best } = result;
  const where = output === null ? '' : `, written to ${output}`;
  const kept =
    best === null ? '' : `; exported step ${best.step} (${best.metric} ${best.value.toFixed(4)})`;
  const hint = reason === 'aborted' ? `; ${resumeHint(result, settings)}` : '';
  progress.message(
    `${reason} after ${steps} ${steps === 1 ? 'step' : 'steps'} and ${formatSeconds(elapsedSeconds)}${where}${kept}${hint}`,
  );
  return reason === 'aborted' ? (signal.reason as Interrupt).exitCode : 0;
}

function resumeHint({ checkpoint }: TrainResult, { output }: TrainSettings): string {
  if (output === undefined) return 'without --output nothing was saved';
  return checkpoint === null
    ? 'there is no checkpoint, begin anew with --overwrite'
    : `run the same command with --resume to continue from ${checkpoint}`;
}

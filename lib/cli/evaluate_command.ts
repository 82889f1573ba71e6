/** `balora evaluate`: computes metrics of a model on held-out data, with or without an adapter. */
import { setNumThreads } from '../runtime.ts';
import { printableJson } from '../shown.ts';
import { runWithOptions } from './command_options.ts';
import { type EvaluateSettings, kEvaluateOptions } from './evaluate_options.ts';
import { interruptible } from './interrupt.ts';
import type { CliContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { checkScoreOptions, scoreModel } from './score_command.ts';
import { cliTaskOf } from './tasks/list.ts';
import { checkTask } from './train_setup.ts';

export const addEvaluate: CommandModule = (program, context, run) => {
  const command = program
    .command('evaluate')
    .description(
      'evaluate on held-out data: loss, KL to the base, entropy and rank; for a classifier metrics and confusion matrix; ' +
        'with --tasks on benchmarks',
    );
  runWithOptions(command, kEvaluateOptions, run, async (settings) => {
    checkScoreOptions(settings);
    checkTask(settings);
    return interruptible((signal) => evaluateModel(settings, { context, signal }));
  });
};

async function evaluateModel(
  settings: EvaluateSettings,
  { context, signal }: { context: CliContext; signal: AbortSignal },
): Promise<number> {
  const progress = new Progress(context.stderr);
  if (settings.threads !== undefined) setNumThreads(settings.threads);
  const { result, text } =
    settings.tasks === undefined
      ? await cliTaskOf(settings).evaluate(settings, { progress, signal })
      : await scoreModel(settings, { progress, signal });
  progress.clear();
  context.stdout.write(`${settings.json ? printableJson(result, 2) : text}\n`);
  return 0;
}

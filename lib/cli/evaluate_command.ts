/** `balora evaluate`: computes metrics of a model on held-out data, with or without an adapter. */
import type { Command } from 'commander';
import { setNumThreads } from '../runtime.ts';
import { printableJson } from '../shown.ts';
import { addOptions, readOptions } from './command_options.ts';
import { type EvaluateSettings, kEvaluateOptions } from './evaluate_options.ts';
import { abortable, interruptOf } from './interrupt.ts';
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
  addOptions(command, kEvaluateOptions);
  command.action(
    run(kEvaluateOptions, async (_: unknown, self: Command) => {
      const settings = await readOptions(self, kEvaluateOptions);
      checkScoreOptions(settings);
      checkTask(settings);
      try {
        return await abortable(
          (signal) => evaluateModel(settings, { context, signal }),
          () => {},
        );
      } catch (error) {
        const interrupt = interruptOf(error);
        if (interrupt === null) throw error;
        return interrupt.exitCode;
      }
    }),
  );
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

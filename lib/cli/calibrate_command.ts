/** `balora calibrate`: reads the training data for a start that is computed from it, and writes what a run needs of it to a file. */
import { loraConfig } from '../adapters/config.ts';
import { loraOptions } from '../adapters/lora_options.ts';
import { startNamed } from '../adapters/methods/registry.ts';
import { corruptionOptions } from '../data/corruption_options.ts';
import { ArgumentError } from '../errors.ts';
import { setNumThreads } from '../runtime.ts';
import { seedOptions } from '../train/schema.ts';
import { runWithOptions } from './command_options.ts';
import { interruptible } from './interrupt.ts';
import { withFlags } from './option_table.ts';
import type { CommandContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import type { RunContext } from './tasks/cli_task.ts';
import { cliTaskOf } from './tasks/list.ts';
import {
  calibrationOptions,
  kExampleOptions,
  kLabelOptions,
  kLabelTrainOptions,
  kModelOptions,
  kTaskOption,
  kTrainOptions,
  type TrainSettings,
} from './train_options.ts';
import { trainSetup } from './train_setup.ts';

const { data, dataWeights, method, perDeviceTrainBatchSize, packing, shuffle } = kTrainOptions;

/** The options of `balora train` on which a calibration depends. */
const kCalibrateOptions = withFlags({
  ...{ ...kTaskOption, ...kModelOptions, data, dataWeights, ...seedOptions },
  ...{ method, ...loraOptions, ...calibrationOptions },
  calibration: { ...calibrationOptions.calibration, required: true },
  ...{ perDeviceTrainBatchSize, ...kExampleOptions, packing, shuffle },
  ...{ ...kLabelOptions, ...kLabelTrainOptions, ...corruptionOptions },
});

export const addCalibrate: CommandModule = (program, context, run) => {
  const command = program
    .command('calibrate')
    .description(
      'read the training data for a start that is computed from it (eva, corda, lora_ga), with the options of the run that is to start so',
    );
  runWithOptions(command, kCalibrateOptions, run, async (settings) => {
    const progress = new Progress(context.stderr);
    try {
      return await interruptible(
        (signal) => calibrateFor(settings, { context, progress, signal }),
        () =>
          progress.message('stopping after this micro-batch; the same command goes on from there'),
      );
    } finally {
      progress.clear();
    }
  });
};

async function calibrateFor(
  settings: TrainSettings,
  { context, progress, signal }: RunContext & { context: CommandContext },
): Promise<number> {
  const setup = trainSetup(settings);
  const { method: _, ...config } = setup.adapter ?? {};
  const { initLoraWeights } = loraConfig(config);
  if (setup.adapter === null || startNamed(initLoraWeights)?.calibration === undefined) {
    throw new ArgumentError(
      'calibrate needs a start that is computed from data; choose --method eva, corda, lora_ga or lora_ga_peft, or --init-lora-weights',
    );
  }
  if (settings.threads !== undefined) setNumThreads(settings.threads);
  // Making the adapter of the run makes its calibration, and shows that the start can be computed from it.
  const prepared = await cliTaskOf(settings).prepare(settings, setup, { progress, signal });
  await prepared.close();
  progress.clear();
  context.stdout.write(`calibration in ${settings.calibration}\n`);
  return 0;
}

/** `balora export`: writes an adapter, such as that of a checkpoint, as a PEFT folder. */
import { join } from 'node:path';
import type { Command } from 'commander';
import { RESIDUAL_BASE } from '../adapters/peft_folder.ts';
import { outputOptions } from '../train/schema.ts';
import { adaptedOptions, loadAdapted } from './adapted_model.ts';
import { addOptions, readOptions } from './command_options.ts';
import type { CommandModule } from './program.ts';
import { Progress } from './progress.ts';

const kExportOptions = {
  ...adaptedOptions('where the adapter is written'),
  export: outputOptions.export,
};

export const addExport: CommandModule = (program, context, run) => {
  const command = program
    .command('export')
    .description('write an adapter, such as that of a checkpoint, as a PEFT folder');
  addOptions(command, kExportOptions);
  command.action(
    run(kExportOptions, async (_: unknown, self: Command) => {
      const settings = await readOptions(self, kExportOptions);
      const { output, export: form = 'lora' } = settings;
      const { tuned, tokenizer } = await loadAdapted(settings, new Progress(context.stderr));
      tuned.checkForm(form);
      await tuned.savePretrained(output as string, { form });
      // A base that was read from a GGUF file has no tokenizer files to copy.
      if (form === 'residual')
        await tokenizer.savePretrained(join(output as string, RESIDUAL_BASE));
      context.stdout.write(`written to ${output}\n`);
      return 0;
    }),
  );
};

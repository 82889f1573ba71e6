/** `balora push`: pushes a folder, such as an adapter or a merged model, to the Hugging Face Hub. */
import type { Command } from 'commander';
import { pushFolder } from '../export/push.ts';
import { onOff, text } from '../options/kinds.ts';
import { group } from '../options/option.ts';
import { addOptions, readOptions } from './command_options.ts';
import { abortable } from './interrupt.ts';
import type { CommandModule } from './program.ts';
import { Progress } from './progress.ts';

const kPushOptions = group('Hub', {
  repo: text({
    placeholder: 'owner/name',
    help: 'the repository, which is made if there is none',
    required: true,
    aliases: ['repo-id', 'hub-model-id'],
  }),
  private: onOff({ help: 'make a new repository private' }),
  revision: text({ placeholder: 'branch', help: 'branch of the commit; default: main' }),
  message: text({ help: 'first line of the message of the commit', aliases: ['commit-message'] }),
});

export const addPush: CommandModule = (program, context, run) => {
  const command = program
    .command('push')
    .description('push a folder to the Hugging Face Hub; HF_TOKEN has the access token')
    .argument('<folder>', 'the folder of an adapter or of a model');
  addOptions(command, kPushOptions);
  command.action(
    run(kPushOptions, async (folder: string, _: unknown, self: Command) => {
      const settings = await readOptions(self, kPushOptions);
      const progress = new Progress(context.stderr);
      const url = await abortable(
        (signal) =>
          pushFolder(folder, {
            ...settings,
            ...{ repo: settings.repo as string, signal },
            onFile: (path) => progress.message(path),
          }),
        () => progress.message('stopping'),
      );
      context.stdout.write(`pushed to ${url}\n`);
      return 0;
    }),
  );
};

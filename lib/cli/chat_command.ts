/** `balora chat`: a conversation with a model, by lines of a terminal or a pipe. */
import { type ChatModel, openChat } from '../generate/chat.ts';
import { generationChecks } from '../generate/options.ts';
import { checkTogether } from '../options/option.ts';
import { openChatInput } from './chat_input.ts';
import { ChatLoop } from './chat_loop.ts';
import { type ChatCommandSettings, kAnswerKeys, kChatOptions } from './chat_options.ts';
import { runWithOptions } from './command_options.ts';
import { loadGenerator } from './generator.ts';
import { flagOf, pick } from './option_table.ts';
import type { CommandContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { CLI_TASKS } from './tasks/list.ts';

export const addChat: CommandModule = (program, context, run) => {
  const command = program
    .command('chat')
    .description('talk to a model, with or without an adapter; /help lists what can be typed');
  runWithOptions(command, kChatOptions, run, async (settings) => {
    checkTogether(generationChecks, settings, { name: flagOf });
    return chat(settings, context);
  });
};

async function chat(settings: ChatCommandSettings, context: CommandContext): Promise<number> {
  const { adapter, system } = settings;
  const { tuned, tokenizer } = await loadGenerator(settings, {
    ...{ task: CLI_TASKS['causal-lm'], progress: new Progress(context.stderr) },
    adapters: adapter === undefined ? [] : [{ path: adapter }],
  });
  const conversation = openChat(tuned as ChatModel, {
    ...pick(settings, kAnswerKeys),
    ...{ tokenizer, system: system === undefined || system === '' ? null : system },
  });
  const input = openChatInput(context.stdin ?? process.stdin, context.answers);
  try {
    return await new ChatLoop(conversation, {
      stdout: context.answers,
      stderr: context.stderr,
      input,
    }).run();
  } finally {
    input.close();
    conversation.dispose();
  }
}

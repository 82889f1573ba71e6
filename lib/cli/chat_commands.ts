/** The commands of a conversation: lines that begin with a slash. */
import type { Chat } from '../generate/chat.ts';

/** The conversation, and the adapter with which it began. */
export interface ChatState {
  readonly chat: Chat;
  /** Name of the adapter that `/adapter on` switches on; null: none was loaded. */
  readonly adapter: string | null;
}

/** A command of a conversation. */
interface ChatCommand {
  /** The text that follows the name, for the help. */
  readonly argument?: string;
  readonly help: string;
  /** @returns what is shown to the user; null: the conversation ends */
  run(argument: string, state: ChatState): string | null;
}

/** The commands by their names, in the order of the help. */
export const kChatCommands: Readonly<Record<string, ChatCommand>> = {
  '/reset': {
    help: 'begin the conversation anew; the system message stays',
    run: (_, { chat }) => {
      chat.reset();
      return 'the conversation begins anew';
    },
  },
  '/adapter': {
    argument: 'on|off',
    help: 'answer with the adapter or as the model before tuning, from here on',
    run: switchAdapter,
  },
  '/system': {
    argument: '[TEXT]',
    help: 'set the system message, from here on; without a text, leave it out',
    run: (text, { chat }) => {
      chat.system = text === '' ? null : text;
      return text === '' ? 'there is no system message' : 'the system message is set';
    },
  },
  '/help': { help: 'list what can be typed', run: () => helpText() },
  '/exit': { help: 'leave; so do Ctrl-D, and Ctrl-C on an empty line', run: () => null },
};

/** The command of a line and what follows its name; null for a message. A name that is not known has no command. */
export function commandOf(
  line: string,
): { name: string; command: ChatCommand | null; argument: string } | null {
  if (!line.startsWith('/') || line.startsWith('//')) return null;
  const [name = '', ...rest] = line.trim().split(/\s/);
  const command = Object.hasOwn(kChatCommands, name) ? (kChatCommands[name] as ChatCommand) : null;
  return { name, command, argument: rest.join(' ').trim() };
}

function switchAdapter(argument: string, { chat, adapter }: ChatState): string {
  if (argument !== 'on' && argument !== 'off') return '/adapter is followed by on or off';
  if (adapter === null) return 'there is no adapter; start with --adapter FOLDER';
  chat.adapter = argument === 'on' ? adapter : null;
  return argument === 'on' ? 'the adapter answers' : 'the model before tuning answers';
}

function helpText(): string {
  const rows = Object.entries(kChatCommands).map(([name, { argument = '', help }]) => [
    `${name} ${argument}`.trim(),
    help,
  ]) as [string, string][];
  rows.push(['//...', 'send a message that begins with a slash']);
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, help]) => `${name.padEnd(width)}  ${help}`).join('\n');
}

/**
 * Chat templates: Jinja as transformers runs it (trim_blocks, lstrip_blocks, raise_exception, strftime_now), through
 * @huggingface/jinja.
 */
import { Template } from '@huggingface/jinja';
import { withDeadline } from '../deadline.ts';
import { ArgumentError, FormatError } from '../errors.ts';
import { misspelt } from '../nearest.ts';
import { type CallTable, checkCall, kCall } from '../options/call.ts';
import { shown } from '../shown.ts';
import { kTemplateAdvice, runTemplate } from './bounded_interpreter.ts';

/** One message of a conversation. Templates may read further keys (tool_calls, name, ...). */
export interface ChatMessage {
  role: string;
  content: unknown;
  [key: string]: unknown;
}

/** Roles that chat templates know. Some know others, which are theirs to accept. */
const kRoles = ['system', 'user', 'assistant', 'tool', 'developer', 'function', 'ipython'];

/** The role that a role is a misspelling of; null for one that is known, and for one that a template may know. */
export function misspeltRole(role: string): string | null {
  return kRoles.includes(role) ? null : misspelt(role, kRoles);
}

/**
 * Refuses messages with a misspelt role, which a template renders as a role of its own or leaves out.
 * @param where the messages: `generate: messages`
 * @param template what renders them, whose own roles are no slips; null: not known
 * @throws ArgumentError naming the message and the role that is meant
 */
export function checkRoles(
  where: string,
  messages: readonly ChatMessage[],
  template: ChatTemplate | null,
): void {
  for (const [i, { role }] of messages.entries()) {
    const meant = typeof role === 'string' ? misspeltRole(role) : null;
    if (meant === null || template?.names(role)) continue;
    throw new ArgumentError(
      `${where}[${i}].role is ${shown(role, 40)}, which is not known (did you mean "${meant}"?); correct it, or name the role in the ` +
        'chat template, in quotes',
    );
  }
}

/** Options of {@link ChatTemplate.render}. */
export interface RenderOptions {
  /** Whether to end with the tokens that begin an assistant message. Default false. */
  addGenerationPrompt?: boolean;
  /** Tool descriptions, for templates that know them. */
  tools?: unknown[];
  /** Further variables of the template. */
  variables?: Record<string, unknown>;
}

/** The kinds of the options. */
const kTable: CallTable<RenderOptions> = {
  addGenerationPrompt: kCall.boolean,
  tools: kCall.list,
  variables: kCall.object,
};

/** The value of chat_template in tokenizer_config.json: one template, or a list of named ones. */
export type ChatTemplateSource = string | readonly { name: string; template: string }[];

/** Published templates have up to 20,000 characters, and are parsed in milliseconds. */
const kMaxSource = 2 ** 20;
const kParseMs = 2000;

const text = (error: unknown) => (error instanceof Error ? error.message : String(error));

/** A model's chat template (Jinja). */
export class ChatTemplate {
  private readonly sources: ReadonlyMap<string, string>;
  private readonly parsed = new Map<string, Template>();

  /** @param specialTokens variables such as bos_token and eos_token */
  constructor(
    source: ChatTemplateSource,
    private readonly specialTokens: Readonly<Record<string, string>>,
  ) {
    const list = typeof source === 'string' ? [{ name: 'default', template: source }] : source;
    const isNamed = (entry: unknown): boolean => {
      const { name, template } = (entry ?? {}) as { name?: unknown; template?: unknown };
      return typeof name === 'string' && typeof template === 'string';
    };
    if (!Array.isArray(list) || list.length === 0 || !list.every(isNamed)) {
      throw new FormatError(
        'chat template: must be a text, or a list of templates with a name each',
        { advice: kTemplateAdvice },
      );
    }
    this.sources = new Map(list.map(({ name, template }) => [name, template]));
  }

  /** Whether the template has a text as one of its own, in quotes, such as the role that it compares with. */
  names(text: string): boolean {
    const quoted = [`'${text}'`, `"${text}"`];
    return [...this.sources.values()].some((source) => quoted.some((one) => source.includes(one)));
  }

  /**
   * Renders a conversation.
   * @throws ArgumentError with the template's own message when it refuses the conversation, FormatError for a template that takes
   *   too many steps or writes too much
   */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    checkCall('chat template', options, kTable);
    const { addGenerationPrompt = false, tools, variables } = options;
    const template = this.choose(tools !== undefined);
    try {
      return runTemplate(template.parsed, {
        ...this.specialTokens,
        ...variables,
        messages,
        add_generation_prompt: addGenerationPrompt,
        ...(tools === undefined ? {} : { tools }),
      });
    } catch (error) {
      if (error instanceof FormatError) throw error;
      throw new ArgumentError(
        `chat template: it refuses the messages (${text(error)}); change them to what it accepts`,
      );
    }
  }

  private choose(withTools: boolean): Template {
    const wanted = withTools && this.sources.has('tool_use') ? 'tool_use' : 'default';
    const entry = [...this.sources].find(([name]) => name === wanted) ?? [...this.sources][0];
    const [name, source] = entry as [string, string];
    let template = this.parsed.get(name);
    if (!template) {
      template = parsed(name, source);
      this.parsed.set(name, template);
    }
    return template;
  }
}

/** Parses a template. @throws FormatError if it cannot be parsed, or is too long */
function parsed(name: string, source: string): Template {
  const wrong = (what: string) =>
    new FormatError(`chat template '${name}' ${what}`, { advice: kTemplateAdvice });
  if (source.length > kMaxSource) {
    throw wrong(`has ${source.length} characters, more than the ${kMaxSource} that are read`);
  }
  const late = () => wrong(`takes more than ${kParseMs / 1000} s to parse`);
  try {
    return withDeadline(kParseMs, () => new Template(source), late);
  } catch (error) {
    throw error instanceof FormatError ? error : wrong(`does not parse: ${text(error)}`);
  }
}

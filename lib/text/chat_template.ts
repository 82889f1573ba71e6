/**
 * Chat templates: Jinja as transformers runs it (trim_blocks, lstrip_blocks, raise_exception, strftime_now), through
 * @huggingface/jinja.
 */
import { Template } from '@huggingface/jinja';
import { ArgumentError, FormatError } from '../errors.ts';

/** One message of a conversation. Templates may read further keys (tool_calls, name, ...). */
export interface ChatMessage {
  role: string;
  content: unknown;
  [key: string]: unknown;
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

/** The value of chat_template in tokenizer_config.json: one template, or a list of named ones. */
export type ChatTemplateSource = string | readonly { name: string; template: string }[];

const kAdvice = 'correct chat_template.jinja, or chat_template in tokenizer_config.json';

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
    this.sources = new Map(
      typeof source === 'string'
        ? [['default', source]]
        : source.map(({ name, template }) => [name, template]),
    );
    if (this.sources.size === 0) {
      throw new FormatError('chat template: the list of templates is empty', { advice: kAdvice });
    }
  }

  /**
   * Renders a conversation.
   * @throws ArgumentError with the template's own message when it refuses the conversation
   */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    const { addGenerationPrompt = false, tools, variables } = options;
    const template = this.choose(tools !== undefined);
    try {
      return template.render({
        ...this.specialTokens,
        ...variables,
        messages,
        add_generation_prompt: addGenerationPrompt,
        ...(tools === undefined ? {} : { tools }),
      });
    } catch (error) {
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
      try {
        template = new Template(source);
      } catch (error) {
        throw new FormatError(`chat template '${name}' does not parse: ${text(error)}`, {
          advice: kAdvice,
        });
      }
      this.parsed.set(name, template);
    }
    return template;
  }
}

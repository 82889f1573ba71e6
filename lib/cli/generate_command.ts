/** `balora generate`: continues or answers a prompt, with or without an adapter. The text goes to stdout as it comes. */
import { kChatTemplateName, PromptTemplate } from '../data/prompt_template.ts';
import { readTemplate } from '../data/template_file.ts';
import { ArgumentError } from '../errors.ts';
import { type Generation, generate } from '../generate/generate.ts';
import { generationChecks, generationOptions } from '../generate/options.ts';
import type { GeneratedText } from '../generate/sequence.ts';
import { formatBytes } from '../io/format_bytes.ts';
import { checkTogether } from '../options/option.ts';
import { memoryStats } from '../runtime.ts';
import { printableJson } from '../shown.ts';
import { runWithOptions } from './command_options.ts';
import { type GenerateCommandSettings, kGenerateOptions } from './generate_options.ts';
import { loadGenerator } from './generator.ts';
import { abortable, Interrupt } from './interrupt.ts';
import { flagOf, pick } from './option_table.ts';
import type { CommandContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { cliTaskOf } from './tasks/list.ts';
import { fixed, writeAnswer } from './terminal.ts';

export const addGenerate: CommandModule = (program, context, run) => {
  const command = program
    .command('generate')
    .description(
      'answer or continue a prompt; greedy and at most 256 tokens unless options say otherwise',
    );
  runWithOptions(command, kGenerateOptions, run, async (settings) => {
    checkTogether(generationChecks, settings, { name: flagOf });
    if (settings.task === 'sequence-classification') {
      throw new ArgumentError(
        'a classifier does not generate text; balora evaluate shows what it predicts',
      );
    }
    return abortable((signal) => generateText(settings, { context, signal }));
  });
};

async function generateText(
  settings: GenerateCommandSettings,
  { context, signal }: { context: CommandContext; signal: AbortSignal },
): Promise<number> {
  const { adapter, prompt } = settings;
  const template = templateOf(settings);
  // Before the weights are read, so that what is wrong with the template is known at once.
  const text = await filled(template, prompt as string);
  const { model, tuned, tokenizer } = await loadGenerator(settings, {
    ...{ task: cliTaskOf(settings), progress: new Progress(context.stderr) },
    adapters: adapter === undefined ? [] : [{ path: adapter }],
  });
  const isChat =
    template === kChatTemplateName || (template === undefined && tokenizer.chatTemplate !== null);
  const stream = generate(tuned, {
    ...pick(settings, Object.keys(generationOptions) as (keyof typeof generationOptions)[]),
    ...(isChat ? { messages: [{ role: 'user', content: text }] } : { prompt: text }),
    ...{ tokenizer, signal },
  });
  const results = await show(stream, settings, context);
  context.stderr.write(`${speeds(results, model.device)}\n`);
  return signal.reason instanceof Interrupt ? signal.reason.exitCode : 0;
}

/** The template that was asked for; undefined: the model's chat template, if it has one. */
function templateOf({ raw = false, promptTemplate }: GenerateCommandSettings): string | undefined {
  if (!raw) return promptTemplate;
  if (promptTemplate === undefined) return 'none';
  throw new ArgumentError(
    '--raw continues the prompt as it is, which leaves --prompt-template nothing to do; leave one of them out',
  );
}

/** The prompt in a template, or as it is where the model's chat template is for it. */
async function filled(template: string | undefined, prompt: string): Promise<string> {
  if (template === undefined || template === kChatTemplateName) return prompt;
  return new PromptTemplate(await readTemplate(template)).fillWith(prompt);
}

/** Writes the texts: the only one as it comes, several one after the other, or all as JSON. */
async function show(
  stream: Generation,
  { json, numReturnSequences = 1 }: GenerateCommandSettings,
  { stdout, answers }: CommandContext,
): Promise<readonly GeneratedText[]> {
  if (json) {
    const results = await stream.result;
    stdout.write(`${printableJson(results, 2)}\n`);
    return results;
  }
  if (numReturnSequences === 1) {
    for await (const { text } of stream) writeAnswer(answers, text);
    answers.write('\n');
    return stream.result;
  }
  const results = await stream.result;
  results.forEach(({ text }, i) => {
    writeAnswer(answers, `--- ${i + 1} of ${results.length}\n${text}\n`);
  });
  return results;
}

/** A line with the number of tokens, the speeds of reading and writing, and the memory that was used at most. */
function speeds(results: readonly GeneratedText[], device: string): string {
  const [first] = results as [GeneratedText];
  const written = results.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const rate = results.reduce((sum, { tokensPerSecond }) => sum + tokensPerSecond, 0);
  return [
    `${first.promptTokens} prompt tokens (${fixed(first.promptTokensPerSecond, 1)} tokens/s)`,
    `${written} new tokens (${fixed(rate, 1)} tokens/s)`,
    `${formatBytes(memoryStats({ device }).peakBytes)} at most`,
  ].join(', ');
}

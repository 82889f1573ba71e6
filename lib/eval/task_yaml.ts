/**
 * Tasks that a user describes in a YAML file of a few lines: multiple choice, or answers that are generated and compared. The keys are
 * those of lm-evaluation-harness's task files. In texts, `{{field}}` stands for a field of the row, and `{{field.part}}` for one within
 * it; other expressions are refused.
 */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { patternProblem, withDeadline } from '../deadline.ts';
import { ArgumentError } from '../errors.ts';
import { readYamlFile, type YamlFile } from '../io/yaml_file.ts';
import { strip } from './python_text.ts';
import { normalizedAccuracies } from './tasks/choice_metrics.ts';
import type { Fields } from './tasks/fields.ts';
import type { ChoiceTask, GenerationTask } from './tasks/task.ts';

const kKind = { noun: 'task', example: 'output_type: multiple_choice' };
const kMetrics = ['acc', 'acc_norm', 'acc_bytes'] as const;

const kText = z.string().min(1);
/** The text between a question and its answer: one that is scored, or that of an example. */
const kDelimiter = z.string().default(' ');
const kCommon = {
  task: z.string().regex(/^\w[\w.-]*$/),
  version: z.int().min(1).default(1),
  doc_to_text: z.string(),
  num_fewshot: z.int().min(0).default(0),
};

const kChoiceFile = z.strictObject({
  ...kCommon,
  output_type: z.literal('multiple_choice'),
  doc_to_choice: z.union([z.array(kText).min(2), kText]),
  doc_to_target: z.union([kText, z.int().min(0)]),
  target_delimiter: kDelimiter,
  metric_list: z.array(z.enum(kMetrics)).min(1).default(['acc', 'acc_norm']),
});

const kGenerationFile = z.strictObject({
  ...kCommon,
  output_type: z.literal('generate_until'),
  doc_to_target: kText,
  until: z.array(kText).default(['\n']),
  max_gen_toks: z.int().min(1).default(64),
  regex_pattern: kText.optional(),
  ignore_case: z.boolean().default(true),
  target_delimiter: kDelimiter,
});

const kFile = z.discriminatedUnion('output_type', [kChoiceFile, kGenerationFile]);

type ChoiceFile = z.infer<typeof kChoiceFile>;
type GenerationFile = z.infer<typeof kGenerationFile>;

/** Whether a name of a task is that of a file with a task of the user's. */
export function isTaskFile(name: string): boolean {
  return /\.ya?ml$/i.test(name);
}

/**
 * Reads a task from a file.
 * @throws ArgumentError naming file, line and key for one that is unknown, missing or wrong; FormatError for a file that is no YAML
 */
export async function readTaskFile(path: string): Promise<ChoiceTask | GenerationTask> {
  const source: Source = { path, file: await readYamlFile(path, kKind) };
  const found = kFile.safeParse(source.file.values);
  if (!found.success) throw complaint(source, found.error.issues[0] as z.core.$ZodIssue);
  const definition = createHash('sha256').update(JSON.stringify(found.data)).digest('hex');
  const task =
    found.data.output_type === 'multiple_choice'
      ? choiceTask(found.data, source)
      : generationTask(found.data, source);
  return { ...task, definition };
}

/** The file that a task comes from, for messages. */
interface Source {
  readonly path: string;
  readonly file: YamlFile;
}

/** The error for a key of the file. */
function wrongKey({ path, file }: Source, key: string, message: string): ArgumentError {
  return new ArgumentError(`${path}:${file.lineOf([key])}: ${key} ${message}`);
}

/** The error for the first thing that the schema refuses. */
function complaint(source: Source, issue: z.core.$ZodIssue): ArgumentError {
  if (issue.code === 'unrecognized_keys') {
    const { output_type: type } = source.file.values;
    const known = Object.keys((type === 'generate_until' ? kGenerationFile : kChoiceFile).shape);
    return wrongKey(
      source,
      issue.keys[0] as string,
      `is no key of a task; known: ${known.join(', ')}`,
    );
  }
  const key = String(issue.path[0]);
  if (!Object.hasOwn(source.file.values, key)) {
    return new ArgumentError(`${source.path}: ${key} is missing; ${kWanted[key]}`);
  }
  const { path, file } = source;
  const line = file.lineOf(issue.path as (string | number)[]);
  return new ArgumentError(`${path}:${line}: ${key}: ${kWanted[key] ?? issue.message}`);
}

/** Advice for each key. */
const kWanted: Readonly<Record<string, string>> = {
  task: 'give the task a name of letters, digits, _, . and -',
  version: 'give a whole number >= 1',
  output_type: 'give multiple_choice or generate_until',
  doc_to_text: 'give the question, with {{field}} for a field of the row',
  doc_to_choice: 'give a list of at least two answers, or the field that has such a list',
  doc_to_target:
    'give for multiple_choice the field with the index, letter or text of the right answer, or its index; for generate_until the answer',
  target_delimiter: 'give a text',
  metric_list: `give a list of ${kMetrics.join(', ')}`,
  num_fewshot: 'give a whole number >= 0',
  until: 'give a list of texts before which an answer ends',
  max_gen_toks: 'give a whole number >= 1',
  regex_pattern: 'give a regular expression, whose first group is the answer',
  ignore_case: 'give true or false',
};

const kHelp = "a task of the user's";

function choiceTask(file: ChoiceFile, source: Source): ChoiceTask {
  const question = new Template(file.doc_to_text, { source, key: 'doc_to_text' });
  const choicesOf = choicesReader(file.doc_to_choice, source);
  const { doc_to_target: target, metric_list: metrics } = file;
  return {
    ...{ name: file.task, version: file.version, kind: 'choice' as const },
    ...{ help: kHelp, fields: [[]] },
    ...{ numFewshot: file.num_fewshot, delimiter: file.target_delimiter },
    read(fields) {
      const choices = choicesOf(fields);
      const gold = typeof target === 'number' ? target : goldOf(fields, target, choices);
      if (gold < choices.length) return { context: question.fill(fields), choices, gold: [gold] };
      throw new ArgumentError(`there are ${choices.length} answers, and no answer ${gold}`);
    },
    measure(item, loglikelihoods) {
      const all = normalizedAccuracies(item, loglikelihoods);
      return Object.fromEntries(metrics.map((name) => [name, all[name] as number]));
    },
  };
}

/** The answers of a row: texts with placeholders, or a field that is a list. */
function choicesReader(
  given: ChoiceFile['doc_to_choice'],
  source: Source,
): (fields: Fields) => readonly string[] {
  if (typeof given === 'string') {
    return (fields) => {
      const { parent, name } = inner(fields, given);
      return parent.texts(name);
    };
  }
  const texts = given.map((one) => new Template(one, { source, key: 'doc_to_choice' }));
  return (fields) => texts.map((one) => one.fill(fields));
}

/** The right answer by a field, which has its text, its letter or its index. */
function goldOf(fields: Fields, path: string, choices: readonly string[]): number {
  const { parent, name } = inner(fields, path);
  const value = parent.value(name);
  if (typeof value !== 'string') return parent.index(name, choices.length);
  const byText = choices.indexOf(value);
  if (byText >= 0) return byText;
  const byLetter = /^[A-Z]$/.test(value) ? value.charCodeAt(0) - 'A'.charCodeAt(0) : choices.length;
  if (byLetter < choices.length) return byLetter;
  if (/^\d+$/.test(value)) return parent.index(name, choices.length);
  throw parent.wrong(name, 'the text, the letter or the index of an answer');
}

function generationTask(file: GenerationFile, source: Source): GenerationTask {
  const question = new Template(file.doc_to_text, { source, key: 'doc_to_text' });
  const answer = new Template(file.doc_to_target, { source, key: 'doc_to_target' });
  const extract = extractor(file.regex_pattern, source);
  const plain = (text: string): string => {
    const stripped = strip(text);
    return file.ignore_case ? stripped.toLowerCase() : stripped;
  };
  return {
    ...{ name: file.task, version: file.version, kind: 'generation' as const },
    ...{ help: kHelp, fields: [[]] },
    ...{ numFewshot: file.num_fewshot, stopStrings: file.until, maxNewTokens: file.max_gen_toks },
    read: (fields) => ({ question: question.fill(fields), answer: answer.fill(fields) }),
    prompt: (item) => item.question,
    example: (item) => `${item.question}${file.target_delimiter}${item.answer}`,
    extract(item, output) {
      const found = extract(output);
      const exact_match = Number(found !== null && plain(found) === plain(item.answer));
      return { extracted: { answer: found }, metrics: { exact_match } };
    },
  };
}

/** Time that the search for an answer may take. */
const kSearchMs = 1000;

/** The search for the answer of a text: the last match of the pattern, or its first group; without a pattern, the text itself. */
function extractor(pattern: string | undefined, source: Source): (output: string) => string | null {
  if (pattern === undefined) return (output) => output;
  const problem = patternProblem(pattern);
  if (problem !== null) throw wrongKey(source, 'regex_pattern', problem);
  const late = () =>
    wrongKey(source, 'regex_pattern', 'takes too long; write it so that it need not try again');
  const search = <T>(work: () => T): T => withDeadline(kSearchMs, work, late);
  let expression: RegExp;
  try {
    expression = new RegExp(pattern, 'gu');
    // Compiles it for both kinds of texts: only then V8 finds that it is too large.
    for (const text of ['', '\u2581']) search(() => text.search(expression));
  } catch (error) {
    if (error instanceof ArgumentError) throw error;
    throw wrongKey(
      source,
      'regex_pattern',
      `is no regular expression: ${(error as Error).message}`,
    );
  }
  return (output) => {
    const matches = search(() => [...output.matchAll(expression)]);
    const last = matches.at(-1);
    return last === undefined
      ? null
      : (last.slice(1).find((group) => group !== undefined) ?? last[0]);
  };
}

/** The field at a path such as `choices.text`, by the fields that it is one of. */
function inner(fields: Fields, path: string): { parent: Fields; name: string } {
  const names = path.split('.');
  const name = names.pop() as string;
  return { parent: names.reduce((parent, one) => parent.nested(one), fields), name };
}

const kPath = /^\w[\w-]*(?:\.\w[\w-]*)*$/;

/** A text with `{{field}}` placeholders. */
class Template {
  readonly #parts: readonly string[];

  /** @throws ArgumentError naming the key for anything but the name of a field between braces */
  constructor(text: string, { source, key }: { source: Source; key: string }) {
    // Every second part is what stands between braces.
    this.#parts = text.split(/\{\{(.*?)\}\}/s).map((part, i) => (i % 2 === 0 ? part : part.trim()));
    const odd = this.#parts.find((part, i) => i % 2 === 1 && !kPath.test(part));
    if (odd !== undefined) {
      throw wrongKey(source, key, `may have names of fields in braces alone, got {{${odd}}}`);
    }
    if (this.#parts.some((part, i) => i % 2 === 0 && part.includes('{%'))) {
      throw wrongKey(source, key, 'may have names of fields in braces alone, got {%');
    }
  }

  /** The text for a row. @throws ArgumentError naming the field for one that is missing or neither text nor number */
  fill(fields: Fields): string {
    return this.#parts.map((part, i) => (i % 2 === 0 ? part : fieldText(fields, part))).join('');
  }
}

function fieldText(fields: Fields, path: string): string {
  const { parent, name } = inner(fields, path);
  return parent.word(name);
}

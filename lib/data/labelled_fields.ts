/**
 * Selection of the fields of a row that are its texts and its label: named by options or a GLUE task, or found among known names.
 */
import { ArgumentError } from '../errors.ts';
import { type CallTable, kCall } from '../options/call.ts';
import { glueTask } from './glue.ts';
import type { LabelOptions, TaskLabelOptions } from './labels.ts';
import type { Row } from './rows.ts';

export interface FieldOptions {
  /** A task of GLUE, which sets fields, label names and the kind of label where they are not given. */
  glue?: string;
  /** Field of the text. Default: `sentence` or `text`, or the first pair of GLUE's fields that the first row has. */
  textField?: string;
  /** Field of the second text of a pair. Default: none, unless found with the first. */
  textPairField?: string;
  /** Field of the label. Default `label`. */
  labelField?: string;
}

/** The kinds of the options. */
export const fieldTable: CallTable<FieldOptions> = {
  glue: kCall.text,
  textField: kCall.text,
  textPairField: kCall.text,
  labelField: kCall.text,
};

/** The fields of rows that are their texts and their label. */
export interface Fields {
  readonly texts: readonly string[];
  readonly label: string;
  /** Description for people: `sentence -> label`. */
  readonly description: string;
}

/** Known fields of texts, pairs before single texts: a row with both fields is a pair. */
const kKnownTexts = [
  ['sentence1', 'sentence2'],
  ['premise', 'hypothesis'],
  ['question1', 'question2'],
  ['question', 'sentence'],
  ['sentence'],
  ['text'],
] as const;

/** Chooses the fields of texts and label. @throws ArgumentError naming the fields that there are */
export function chooseFields(row: Row, options: FieldOptions): Fields {
  const { glue, textField, textPairField, labelField } = options;
  const task = glue === undefined ? null : glueTask(glue);
  const has = (name: string): boolean => Object.hasOwn(row, name);
  const names = Object.keys(row).join(', ');
  const hint = "name the columns with columns: ['label', 'sentence'] where a file has no header";
  const label = labelField ?? task?.label.find(has) ?? 'label';
  if (!has(label)) {
    throw new ArgumentError(
      `no field '${label}' for the label (fields: ${names}); name it with labelField, or ${hint}`,
    );
  }
  if (textField !== undefined || textPairField !== undefined) {
    if (textField === undefined)
      throw new ArgumentError('textPairField needs textField; give both');
    const texts = [textField, ...(textPairField === undefined ? [] : [textPairField])];
    const missing = texts.find((name) => !has(name));
    if (missing === undefined) return fieldsOf(texts, label);
    throw new ArgumentError(
      `no field '${missing}' (fields: ${names}); name one of these, or ${hint}`,
    );
  }
  const texts = (task?.texts ?? kKnownTexts).find((fields) => fields.every(has));
  if (texts) return fieldsOf(texts, label);
  throw new ArgumentError(
    `none of the fields is known to be the text (fields: ${names}); name it with textField, or ${hint}`,
  );
}

function fieldsOf(texts: readonly string[], label: string): Fields {
  return { texts, label, description: `${texts.join(' + ')} -> ${label}` };
}

/** The options of the labels: those of the caller, and those of the GLUE task for what the caller leaves open. */
export function labelOptions(options: FieldOptions & LabelOptions): TaskLabelOptions {
  const { glue, numLabels, problemType } = options;
  const labelNames = options.labelNames ?? undefined;
  if (glue === undefined) return { labelNames, numLabels, problemType };
  const names = glueTask(glue).labelNames;
  if (names === null) return { labelNames, numLabels, problemType: problemType ?? 'regression' };
  const named = numLabels === undefined || numLabels === names.length;
  return {
    problemType: problemType ?? 'single_label_classification',
    labelNames: labelNames ?? (named ? names : undefined),
    numLabels,
    taskNames: names,
  };
}

/** The list of architectures that can be loaded, by model_type, or by general.architecture in GGUF files. */
import { UnsupportedError } from '../errors.ts';
import type { GgufFile } from '../io/index.ts';
import { shown } from '../shown.ts';
import { bertClassifier } from './bert.ts';
import { bertGguf, bertLikeOf } from './bert_gguf.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import { debertaV2Classifier } from './deberta_v2.ts';
import { distilBertClassifier } from './distilbert.ts';
import type { ModelFamily } from './family.ts';
import { gemma } from './gemma.ts';
import { gemma2 } from './gemma2.ts';
import { gemma3 } from './gemma3.ts';
import type { GgufTable } from './gguf.ts';
import { gpt2 } from './gpt2.ts';
import { llama } from './llama.ts';
import { mistral } from './mistral.ts';
import { olmo2 } from './olmo2.ts';
import { phi3 } from './phi3.ts';
import { qwen2 } from './qwen2.ts';
import { qwen3 } from './qwen3.ts';
import { robertaClassifier } from './roberta.ts';
import type { Seq2SeqFamily } from './seq2seq_lm.ts';
import { t5 } from './t5.ts';

/** Families of decoders, in the order of the README's table. */
export const kFamilies: readonly ModelFamily[] = [
  llama,
  mistral,
  gemma,
  gemma2,
  gemma3,
  qwen2,
  qwen3,
  phi3,
  olmo2,
  gpt2,
];

/** Families of encoders, which are supported as classifiers alone. */
export const kEncoders: readonly ClassifierKind[] = [
  bertClassifier,
  distilBertClassifier,
  robertaClassifier,
  debertaV2Classifier,
];

/** Families of encoder-decoders. */
export const kSeq2SeqFamilies: readonly Seq2SeqFamily[] = [t5];

/** Finds the family of a causal language model. @throws UnsupportedError naming the types that are known */
export function familyOf(type: string, path: string): ModelFamily {
  const found = kFamilies.find(({ modelType }) => modelType === type);
  if (found !== undefined) return found;
  throw unsupportedModel(`${path}: model_type ${shown(type)}`, {
    as: otherTasks(type, 'as a language model'),
    known: kFamilies.map(({ modelType }) => modelType),
  });
}

/** Finds the family of a GGUF architecture. @throws UnsupportedError naming the architectures that are known */
export function familyOfGguf(
  architecture: string,
  path: string,
): { family: ModelFamily; table: GgufTable } {
  for (const family of kFamilies) {
    if (family.gguf?.architecture === architecture) return { family, table: family.gguf };
  }
  throw unsupportedModel(`${path}: general.architecture ${shown(architecture)}`, {
    ...(isEncoder(architecture) && { as: otherTasks(architecture, 'as a language model') }),
    known: kFamilies.flatMap(({ gguf }) => gguf?.architecture ?? []),
  });
}

/** Finds the encoder-decoder family of a GGUF architecture. @throws UnsupportedError naming the architectures that are known */
export function seq2SeqFamilyOfGguf(
  architecture: string,
  path: string,
): { family: Seq2SeqFamily; table: GgufTable } {
  for (const family of kSeq2SeqFamilies) {
    if (family.gguf?.architecture === architecture) return { family, table: family.gguf };
  }
  throw unsupportedModel(`${path}: general.architecture ${shown(architecture)}`, {
    as: ' as an encoder-decoder',
    known: kSeq2SeqFamilies.flatMap(({ gguf }) => gguf?.architecture ?? []),
  });
}

/** Finds the family of an encoder-decoder. @throws UnsupportedError naming the types that are known */
export function seq2SeqFamilyOf(type: string, path: string): Seq2SeqFamily {
  const found = kSeq2SeqFamilies.find(({ modelType }) => modelType === type);
  if (found !== undefined) return found;
  throw unsupportedModel(`${path}: model_type ${shown(type)}`, {
    as: otherTasks(type, 'as an encoder-decoder'),
    known: kSeq2SeqFamilies.map(({ modelType }) => modelType),
  });
}

/** Finds the classifier of a model_type. @throws UnsupportedError naming the types that are known */
export function classifierKind(type: string, path: string): ClassifierKind {
  const kinds = [...kEncoders, ...kFamilies.flatMap(({ classifier }) => classifier ?? [])];
  const found = kinds.find(({ modelType }) => modelType === type);
  if (found !== undefined) return found;
  throw unsupportedModel(`${path}: model_type ${shown(type)}`, {
    as: otherTasks(type, 'for classification'),
    known: kinds.map(({ modelType }) => modelType),
  });
}

/** Whether GGUF files of an architecture hold encoders. */
const isEncoder = (architecture: string): boolean =>
  kEncoders.some(({ gguf }) => gguf?.architecture === architecture);

/**
 * Finds the classifier and the table for a GGUF architecture: an encoder's own, or those of a decoder's family.
 * @throws UnsupportedError naming the architectures that are known, or for a file that does not name its model
 */
export function classifierKindOfGguf(
  architecture: string,
  path: string,
  file: GgufFile,
): { family: ClassifierKind; table: GgufTable } {
  if (isEncoder(architecture)) {
    const family = classifierKind(bertLikeOf(file), path);
    return { family, table: family.gguf as GgufTable };
  }
  const known = kFamilies.flatMap(({ gguf, classifier }) => (classifier && gguf) ?? []);
  if (kFamilies.every(({ gguf }) => gguf?.architecture !== architecture)) {
    throw unsupportedModel(`${path}: general.architecture ${shown(architecture)}`, {
      as: ' for classification',
      known: [bertGguf, ...known].map((table) => table.architecture),
    });
  }
  const { family, table } = familyOfGguf(architecture, path);
  return { family: classifierKind(family.modelType, path), table };
}

function unsupportedModel(
  what: string,
  { as = '', known }: { as?: string; known: readonly string[] },
): UnsupportedError {
  return new UnsupportedError(
    `${what} is not supported${as}; known: ${known.join(', ')}; read docs/how-to-add-a-model.md in balora's sources ` +
      'to add another',
  );
}

const kLoaders: Readonly<Record<string, string>> = {
  'language model': 'AutoModelForCausalLM',
  classification: 'AutoModelForSequenceClassification, --task sequence-classification',
  'encoder-decoder': 'AutoModelForSeq2SeqLM',
};

/** The task that was asked for and those that the family supports, as a part of the message that refuses the first. */
function otherTasks(type: string, asked: string): string {
  const tasks = supportedModels().find(({ modelType }) => modelType === type)?.tasks ?? [];
  const loaders = tasks.map((task) => `${task}: ${kLoaders[task]}`);
  return loaders.length === 0 ? ` ${asked}` : ` ${asked}, only as ${loaders.join('; ')}`;
}

/** A supported model_type, for the table in the README. */
export interface SupportedModel {
  readonly modelType: string;
  readonly tasks: readonly string[];
  readonly features: string;
  /** general.architecture of GGUF files, or null. */
  readonly gguf: string | null;
}

/** Every model_type that can be loaded, with its tasks. */
export function supportedModels(): SupportedModel[] {
  const rows = new Map<string, SupportedModel>();
  const add = ({ modelType, tasks, features, gguf }: SupportedModel): void => {
    const before = rows.get(modelType);
    rows.set(modelType, {
      modelType,
      tasks: [...(before?.tasks ?? []), ...tasks],
      features: before?.features ?? features,
      gguf: before?.gguf ?? gguf,
    });
  };
  for (const { modelType, features, gguf, classifier } of kFamilies) {
    const tasks = classifier ? ['language model', 'classification'] : ['language model'];
    add({ modelType, tasks, features, gguf: gguf?.architecture ?? null });
  }
  for (const { modelType, features, gguf } of kSeq2SeqFamilies) {
    add({
      modelType,
      tasks: ['encoder-decoder'],
      features,
      gguf: gguf?.architecture ?? null,
    });
  }
  for (const { modelType, features, gguf } of kEncoders) {
    add({ modelType, tasks: ['classification'], features, gguf: gguf?.architecture ?? null });
  }
  return [...rows.values()];
}

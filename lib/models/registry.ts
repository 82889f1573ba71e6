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
  return ofType(kFamilies, { type, path, as: 'as a language model' });
}

/** Finds the family of a GGUF architecture. @throws UnsupportedError naming the architectures that are known */
export function familyOfGguf(architecture: string, path: string): GgufFamily<ModelFamily> {
  const as = isEncoder(architecture) ? otherTasks(architecture, 'as a language model') : '';
  return ofArchitecture(kFamilies, { architecture, path, as });
}

/** Finds the encoder-decoder family of a GGUF architecture. @throws UnsupportedError naming the architectures that are known */
export function seq2SeqFamilyOfGguf(architecture: string, path: string): GgufFamily<Seq2SeqFamily> {
  return ofArchitecture(kSeq2SeqFamilies, { architecture, path, as: ' as an encoder-decoder' });
}

/** Finds the family of an encoder-decoder. @throws UnsupportedError naming the types that are known */
export function seq2SeqFamilyOf(type: string, path: string): Seq2SeqFamily {
  return ofType(kSeq2SeqFamilies, { type, path, as: 'as an encoder-decoder' });
}

/** Finds the classifier of a model_type. @throws UnsupportedError naming the types that are known */
export function classifierKind(type: string, path: string): ClassifierKind {
  const kinds = [...kEncoders, ...kFamilies.flatMap(({ classifier }) => classifier ?? [])];
  return ofType(kinds, { type, path, as: 'for classification' });
}

function ofType<F extends { readonly modelType: string }>(
  families: readonly F[],
  { type, path, as }: { type: string; path: string; as: string },
): F {
  const found = families.find(({ modelType }) => modelType === type);
  if (found !== undefined) return found;
  throw unsupportedModel(`${path}: model_type ${shown(type)}`, {
    as: otherTasks(type, as),
    known: families.map(({ modelType }) => modelType),
  });
}

/** A family with the table of its GGUF files. */
interface GgufFamily<F> {
  readonly family: F;
  readonly table: GgufTable;
}

function ofArchitecture<F extends { readonly gguf: GgufTable | null }>(
  families: readonly F[],
  { architecture, path, as }: { architecture: string; path: string; as: string },
): GgufFamily<F> {
  for (const family of families) {
    if (family.gguf?.architecture === architecture) return { family, table: family.gguf };
  }
  throw unsupportedModel(`${path}: general.architecture ${shown(architecture)}`, {
    as,
    known: families.flatMap(({ gguf }) => gguf?.architecture ?? []),
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
): GgufFamily<ClassifierKind> {
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
  { as, known }: { as: string; known: readonly string[] },
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
  const listed = [
    ...kFamilies.map((family) => ({
      family,
      tasks: family.classifier ? ['language model', 'classification'] : ['language model'],
    })),
    ...kSeq2SeqFamilies.map((family) => ({ family, tasks: ['encoder-decoder'] })),
    ...kEncoders.map((family) => ({ family, tasks: ['classification'] })),
  ];
  return listed.map(({ family: { modelType, features, gguf }, tasks }) => {
    return { modelType, tasks, features, gguf: gguf?.architecture ?? null };
  });
}

/** The architectures that can be loaded: one row a model_type (in GGUF files: general.architecture). */
import { UnsupportedError } from '../errors.ts';
import type { GgufFile } from '../io/index.ts';
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

/** In the order of the README's table. */
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

/** Families of encoders: they classify and have no language model here. */
export const kEncoders: readonly ClassifierKind[] = [
  bertClassifier,
  distilBertClassifier,
  robertaClassifier,
  debertaV2Classifier,
];

/** Families of encoder-decoders. */
export const kSeq2SeqFamilies: readonly Seq2SeqFamily[] = [t5];

/** @throws UnsupportedError naming the types that are known */
export function familyOf(type: string, path: string): ModelFamily {
  const found = kFamilies.find(({ modelType }) => modelType === type);
  if (found !== undefined) return found;
  throw unknown(`${path}: model_type "${type}"`, {
    elsewhere: elsewhere(type, 'as a language model'),
    known: kFamilies.map(({ modelType }) => modelType),
  });
}

/** @throws UnsupportedError naming the architectures that are known */
export function familyOfGguf(
  architecture: string,
  path: string,
): { family: ModelFamily; table: GgufTable } {
  for (const family of kFamilies) {
    if (family.gguf?.architecture === architecture) return { family, table: family.gguf };
  }
  throw unknown(`${path}: general.architecture "${architecture}"`, {
    ...(isEncoder(architecture) && { elsewhere: elsewhere(architecture, 'as a language model') }),
    known: kFamilies.flatMap(({ gguf }) => gguf?.architecture ?? []),
  });
}

/** @throws UnsupportedError naming the architectures that are known */
export function seq2SeqFamilyOfGguf(
  architecture: string,
  path: string,
): { family: Seq2SeqFamily; table: GgufTable } {
  for (const family of kSeq2SeqFamilies) {
    if (family.gguf?.architecture === architecture) return { family, table: family.gguf };
  }
  throw unknown(`${path}: general.architecture "${architecture}"`, {
    elsewhere: ' as an encoder-decoder',
    known: kSeq2SeqFamilies.flatMap(({ gguf }) => gguf?.architecture ?? []),
  });
}

/** @throws UnsupportedError naming the types that are known */
export function seq2SeqFamilyOf(type: string, path: string): Seq2SeqFamily {
  const found = kSeq2SeqFamilies.find(({ modelType }) => modelType === type);
  if (found !== undefined) return found;
  throw unknown(`${path}: model_type "${type}"`, {
    elsewhere: elsewhere(type, 'as an encoder-decoder'),
    known: kSeq2SeqFamilies.map(({ modelType }) => modelType),
  });
}

/** @throws UnsupportedError naming the types that are known */
export function classifierKind(type: string, path: string): ClassifierKind {
  const kinds = [...kEncoders, ...kFamilies.flatMap(({ classifier }) => classifier ?? [])];
  const found = kinds.find(({ modelType }) => modelType === type);
  if (found !== undefined) return found;
  throw unknown(`${path}: model_type "${type}"`, {
    elsewhere: elsewhere(type, 'for classification'),
    known: kinds.map(({ modelType }) => modelType),
  });
}

/** Whether GGUF files of an architecture hold encoders. */
const isEncoder = (architecture: string): boolean =>
  kEncoders.some(({ gguf }) => gguf?.architecture === architecture);

/**
 * An encoder's own row, a decoder's with the family's table.
 * @throws UnsupportedError naming the architectures that are known, or what the file does not tell
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
    throw unknown(`${path}: general.architecture "${architecture}"`, {
      elsewhere: ' for classification',
      known: [bertGguf, ...known].map((table) => table.architecture),
    });
  }
  const { family, table } = familyOfGguf(architecture, path);
  return { family: classifierKind(family.modelType, path), table };
}

function unknown(
  what: string,
  { elsewhere: where = '', known }: { elsewhere?: string; known: readonly string[] },
): UnsupportedError {
  return new UnsupportedError(
    `${what} is not supported${where} (known: ${known.join(', ')}); docs/how-to-add-a-model.md in balora's sources tells ` +
      'what another one takes',
  );
}

const kLoaders: Readonly<Record<string, string>> = {
  'language model': 'AutoModelForCausalLM',
  classification: 'AutoModelForSequenceClassification, --task sequence-classification',
  'encoder-decoder': 'AutoModelForSeq2SeqLM',
};

/** Names the tasks that a family can be loaded for, for the message that refuses another one. */
function elsewhere(type: string, asked: string): string {
  const tasks = supportedModels().find(({ modelType }) => modelType === type)?.tasks ?? [];
  const loaders = tasks.map((task) => `${task}: ${kLoaders[task]}`);
  return loaders.length === 0 ? ` ${asked}` : ` ${asked}, only as ${loaders.join('; ')}`;
}

/** One model_type, for the table in the README. */
export interface SupportedModel {
  readonly modelType: string;
  readonly tasks: readonly string[];
  readonly features: string;
  /** general.architecture of GGUF files, or null. */
  readonly gguf: string | null;
}

/** Every model_type that can be loaded, with all that it can be loaded for. */
export function supportedModels(): SupportedModel[] {
  const rows = new Map<string, SupportedModel>();
  const put = ({ modelType, tasks, features, gguf }: SupportedModel): void => {
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
    put({ modelType, tasks, features, gguf: gguf?.architecture ?? null });
  }
  for (const { modelType, features, gguf } of kSeq2SeqFamilies) {
    put({
      modelType,
      tasks: ['encoder-decoder'],
      features,
      gguf: gguf?.architecture ?? null,
    });
  }
  for (const { modelType, features, gguf } of kEncoders) {
    put({ modelType, tasks: ['classification'], features, gguf: gguf?.architecture ?? null });
  }
  return [...rows.values()];
}

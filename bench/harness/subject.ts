/** The model that a row measures: a given one, or random weights of a named shape. */
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { type ModelShape, type Sizes, shapeNamed, sizesOf } from './shapes.ts';
import type { BenchDType } from './types.ts';

export interface SubjectOptions {
  /** A name of kShapes; not used with `model`. */
  readonly shape: string;
  /** Folder or file of a model. */
  readonly model?: string | undefined;
  readonly dtype: BenchDType;
  /** Vocabulary size of the random weights. Default: the shape's own. */
  readonly vocabulary?: number | undefined;
  /** The blocks in which the weights stay in memory; random ones in `nf4` alone. Default: their values do. */
  readonly baseFormat?: 'nf4' | 'gguf' | undefined;
}

interface Subject {
  readonly model: CausalLM;
  readonly sizes: Sizes;
  /** Name of the shape or the model, for the report. */
  readonly name: string;
  readonly notes: readonly string[];
}

export async function openSubject(options: SubjectOptions): Promise<Subject> {
  const { shape: name, model: path, dtype, vocabulary, baseFormat } = options;
  if (path === undefined) {
    const shape = shapeNamed(name);
    const config = { ...shape, ...(vocabulary === undefined ? {} : { vocab_size: vocabulary }) };
    const model = await AutoModelForCausalLM.fromConfig(config, {
      dtype,
      ...(baseFormat === 'nf4' && { baseFormat }),
    });
    return { model, sizes: sizesOf(config), name, notes: ['random weights'] };
  }
  const model = await AutoModelForCausalLM.fromPretrained(path, {
    dtype,
    ...(baseFormat !== undefined && { baseFormat }),
  });
  const sizes = sizesOf(model.configJson() as unknown as ModelShape);
  return { model, sizes, name: path.split('/').filter(Boolean).at(-1) ?? path, notes: [] };
}

/** Sources of weights under other names than the file's, for checkpoints of old versions and of models saved without their head. */
import { FormatError } from '../errors.ts';
import type { Tensor } from '../tensor.ts';
import type { WeightReadOptions, WeightSource } from './weights.ts';

/** Converts the name of a tensor in the file to the model's; null: the model does not use the tensor. */
export type Rename = (name: string) => string | null;

/** A source whose tensors have other names than in the file. */
export class RenamedWeights implements WeightSource {
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** Names in the file by the new names. */
  readonly #stored = new Map<string, string>();

  /** @throws FormatError when two tensors would get one name */
  constructor(
    private readonly source: WeightSource,
    rename: Rename,
  ) {
    const shapes = new Map<string, readonly number[]>();
    for (const [stored, shape] of source.shapes) {
      const name = rename(stored);
      if (name === null) continue;
      const other = this.#stored.get(name);
      if (other !== undefined) {
        const { path } = source;
        throw new FormatError(`${path}: holds ${name} twice, as ${other} and as ${stored}`, {
          path,
        });
      }
      this.#stored.set(name, stored);
      shapes.set(name, shape);
    }
    this.shapes = shapes;
  }

  get path(): string {
    return this.source.path;
  }

  read(name: string, options: WeightReadOptions): Tensor {
    return this.source.read(this.#stored.get(name) ?? name, options);
  }

  aliases(name: string, options: WeightReadOptions): boolean {
    return this.source.aliases?.(this.#stored.get(name) ?? name, options) ?? false;
  }

  close(): void {
    this.source.close();
  }
}

/** A source completed by a second one for the tensors that it lacks. */
export class CompletedWeights implements WeightSource {
  readonly shapes: ReadonlyMap<string, readonly number[]>;

  constructor(
    private readonly source: WeightSource,
    private readonly missing: WeightSource,
  ) {
    this.shapes = new Map([...missing.shapes, ...source.shapes]);
  }

  get path(): string {
    return this.source.path;
  }

  read(name: string, options: WeightReadOptions): Tensor {
    const from = this.source.shapes.has(name) ? this.source : this.missing;
    return from.read(name, options);
  }

  aliases(name: string, options: WeightReadOptions): boolean {
    const from = this.source.shapes.has(name) ? this.source : this.missing;
    return from.aliases?.(name, options) ?? false;
  }

  close(): void {
    this.source.close();
  }
}

/** Renames the weights of norms in checkpoints that were converted from TensorFlow. */
export function modernName(name: string): string {
  return name
    .replace(/LayerNorm\.gamma$/, 'LayerNorm.weight')
    .replace(/LayerNorm\.beta$/, 'LayerNorm.bias');
}

/**
 * Makes the renaming for a classifier whose base model is at `prefix`, for files with and without that prefix.
 * @param trunk first parts of the names in the base model
 * @param unused the model's names of tensors that it does not use
 */
export function trunkNames(prefix: string, trunk: readonly string[], unused: RegExp): Rename {
  return (stored) => {
    const modern = modernName(stored);
    const first = modern.slice(0, modern.indexOf('.'));
    const name = trunk.includes(first) ? `${prefix}.${modern}` : modern;
    return unused.test(name) ? null : name;
  };
}

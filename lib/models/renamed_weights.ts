/** A source of weights under other names: what old versions, or models saved without their head, call their tensors. */
import { FormatError } from '../errors.ts';
import type { Tensor } from '../tensor.ts';
import type { WeightReadOptions, WeightSource } from './weights.ts';

/** The name that a model gives to a tensor of the file; null for one that it has no use for. */
export type Rename = (name: string) => string | null;

export class RenamedWeights implements WeightSource {
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** New name to the file's. */
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

  close(): void {
    this.source.close();
  }
}

/** Tensors of a source, with those that it lacks from another. */
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

  close(): void {
    this.source.close();
  }
}

/** Normalisation weights of checkpoints that TensorFlow wrote. */
export function modernName(name: string): string {
  return name
    .replace(/LayerNorm\.gamma$/, 'LayerNorm.weight')
    .replace(/LayerNorm\.beta$/, 'LayerNorm.bias');
}

/**
 * Names of a model whose trunk stands at `prefix`, for files with and without it.
 * @param trunk first parts of the names in the trunk
 * @param unused names, as the model would call them, that it has no use for
 */
export function trunkNames(prefix: string, trunk: readonly string[], unused: RegExp): Rename {
  return (stored) => {
    const modern = modernName(stored);
    const first = modern.slice(0, modern.indexOf('.'));
    const name = trunk.includes(first) ? `${prefix}.${modern}` : modern;
    return unused.test(name) ? null : name;
  };
}

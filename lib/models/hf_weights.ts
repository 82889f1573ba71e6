/** A source of weights in a Hugging Face folder: model.safetensors, or shards that model.safetensors.index.json lists. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { FormatError } from '../errors.ts';
import { readSafetensorsIndex, SafetensorsFile, type TensorInfo } from '../io/index.ts';
import { SINGLE_WEIGHTS, WEIGHTS_INDEX } from '../io/model_folder.ts';
import type { Tensor } from '../tensor.ts';
import type { WeightReadOptions, WeightSource } from './weights.ts';

export class HfWeights implements WeightSource {
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** The file of every tensor. */
  readonly #files = new Map<string, SafetensorsFile>();

  private constructor(
    readonly path: string,
    readonly files: readonly SafetensorsFile[],
    private readonly prefix: string,
  ) {
    const shapes = new Map<string, readonly number[]>();
    for (const file of files) {
      for (const { name, shape } of file.tensors.values()) {
        shapes.set(name, shape);
        this.#files.set(name, file);
      }
    }
    this.shapes = this.#prefixed(shapes);
  }

  /**
   * @param prefix prefix of the tensors of the model without its head; added to the names of a checkpoint that was saved without it
   * @throws FormatError for a file that is missing or damaged, or an index that does not fit the shards
   */
  static open(folder: string, prefix: string): HfWeights {
    const single = join(folder, SINGLE_WEIGHTS);
    if (existsSync(single)) return new HfWeights(single, [SafetensorsFile.open(single)], prefix);
    const indexPath = join(folder, WEIGHTS_INDEX);
    const index = readSafetensorsIndex(indexPath);
    const opened = new Map<string, SafetensorsFile>();
    try {
      for (const shard of new Set(index.values())) {
        const path = join(folder, shard);
        if (!existsSync(path)) {
          throw new FormatError(`${indexPath}: the shard ${shard} is not there`, {
            path,
          });
        }
        opened.set(shard, SafetensorsFile.open(path));
      }
      checkIndex(indexPath, index, opened);
    } catch (error) {
      for (const file of opened.values()) file.close();
      throw error;
    }
    return new HfWeights(indexPath, [...opened.values()], prefix);
  }

  read(name: string, options: WeightReadOptions): Tensor {
    const { file, stored } = this.#place(name);
    const { dtype, checkFinite, share } = options;
    return file.read(stored, { dtype, checkFinite, share });
  }

  /** The bytes of a tensor as they stand in the file, (n) u8 on the CPU. */
  readBytes(name: string): Tensor {
    const { file, stored } = this.#place(name);
    return file.readBytes(stored);
  }

  /** The description of a tensor in its file. */
  info(name: string): TensorInfo {
    const { file, stored } = this.#place(name);
    return file.tensors.get(stored) as TensorInfo;
  }

  aliases(name: string, { dtype }: WeightReadOptions): boolean {
    const { file, stored } = this.#place(name);
    return file.tensors.get(stored)?.dtype.toLowerCase() === dtype;
  }

  close(): void {
    for (const file of this.files) file.close();
  }

  /** The file of a tensor, and its name there. @throws FormatError if there is no such tensor */
  #place(name: string): { file: SafetensorsFile; stored: string } {
    const file = this.#files.get(name);
    if (file === undefined)
      throw new FormatError(`${this.path}: holds no tensor ${name}`, { path: this.path });
    return { file, stored: file.tensors.has(name) ? name : name.slice(this.prefix.length) };
  }

  #prefixed(
    shapes: ReadonlyMap<string, readonly number[]>,
  ): ReadonlyMap<string, readonly number[]> {
    const bare = [...shapes.keys()].every((name) => !name.startsWith(this.prefix));
    if (!bare) return shapes;
    return new Map(
      Array.from(shapes, ([name, shape]) => {
        if (name.startsWith('lm_head.')) return [name, shape];
        this.#files.set(this.prefix + name, this.#files.get(name) as SafetensorsFile);
        return [this.prefix + name, shape];
      }),
    );
  }
}

function checkIndex(
  path: string,
  index: ReadonlyMap<string, string>,
  opened: ReadonlyMap<string, SafetensorsFile>,
): void {
  for (const [name, shard] of index) {
    if (!opened.get(shard)?.tensors.has(name)) {
      throw new FormatError(
        `${path}: weight_map places ${name} in ${shard}, which does not hold it`,
        { path },
      );
    }
  }
  for (const [shard, file] of opened) {
    for (const name of file.tensors.keys()) {
      if (index.get(name) === shard) continue;
      throw new FormatError(
        `${path}: ${shard} holds ${name}, which weight_map does not place there`,
        { path },
      );
    }
  }
}

/** The interface of an export target. A target is one file of this folder and one line of the list in registry.ts. */
import type { AdapterModel } from '../adapters/adapter_model.ts';
import type { Model } from '../models/index.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

/** Types in which a target may write weights, as `--outtype` names them. */
export type OutType = 'f32' | 'bf16' | 'f16' | 'q8_0' | 'q4_k_m';

/** The input of an export: a model with its adapter, and the settings. */
export interface ExportInput {
  readonly tuned: AdapterModel<Model>;
  readonly tokenizer: Tokenizer;
  /** The folder that the adapter was read from. */
  readonly adapter: string;
  readonly outtype: OutType;
  /** Largest size of a file of weights, in bytes, for targets that write shards. */
  readonly maxShardSize: number;
  /** A text on which the divergence of a rounded file from F32 is measured; null: none is. */
  readonly klText: string | null;
  /** Shows a warning to the user. */
  readonly warn: (message: string) => void;
}

/** A program that reads an export, for the table in docs/exporting.md. */
export interface Reader {
  readonly program: string;
  /** Version of the program that has read one; null: none has. */
  readonly read: string | null;
}

export interface ExportTarget<Name extends string = string> {
  /** The name that `--to` accepts. */
  readonly name: Name;
  /** A line that describes what is written. */
  readonly title: string;
  /** Whether the output is one file or a folder. */
  readonly output: 'file' | 'folder';
  /** Types of weights that it writes, the default first. */
  readonly types: readonly OutType[];
  /** The programs that it is for. */
  readonly readers: readonly Reader[];
  /**
   * Writes the export; a file or folder appears whole or not at all.
   * @returns lines about what was written, for the user
   * @throws UnsupportedError for what the format cannot hold, before anything is written
   */
  write(input: ExportInput, output: string): Promise<readonly string[]>;
}

/** A target, checked by the compiler; see {@link ExportTarget}. */
export function defineTarget<const Name extends string>(
  target: ExportTarget<Name>,
): ExportTarget<Name> {
  return Object.freeze(target);
}

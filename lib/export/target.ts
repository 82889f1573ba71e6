/** The interface of an export target. A target is one file of this folder and one line of the list in registry.ts. */
import type { AdapterModel } from '../adapters/adapter_model.ts';
import { UnsupportedError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

/** Types in which a target may write weights, as `--outtype` names them. */
export type OutType = 'f32' | 'bf16' | 'f16' | 'q8_0' | 'q4_k_m';

/** A model without an adapter, such as one whose weights were all trained. */
export interface ModelAlone {
  readonly kind: 'model';
  readonly model: Model;
}

/** The input of an export: a model, with its adapter if it has one, and the settings. */
export interface ExportInput {
  readonly tuned: AdapterModel<Model> | ModelAlone;
  readonly tokenizer: Tokenizer;
  /** The folder that the adapter was read from; null without one. */
  readonly adapter: string | null;
  readonly outtype: OutType;
  /** Largest size of a file of weights, in bytes, for targets that write shards. */
  readonly maxShardSize: number;
  /** A text on which the divergence of a rounded file from F32 is measured; null: none is. */
  readonly klText: string | null;
  /** Whether to replace an earlier output; see {@link OutputOptions}. */
  readonly overwrite?: boolean | undefined;
  /** Shows a warning to the user. */
  readonly warn: (message: string) => void;
}

/** The input of a target that is made of an adapter. */
export interface AdapterInput extends ExportInput {
  readonly tuned: AdapterModel<Model>;
  readonly adapter: string;
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
  /** Names of the files in its folder besides weights and their configuration, with an adapter or without one; of a file none. */
  namesOf(adapted: boolean): readonly string[];
  /** Whether it is made of an adapter, so that a model alone cannot be written. */
  readonly ofAdapter: boolean;
  /**
   * Writes the export; a file or folder appears whole or not at all.
   * @returns lines about what was written, for the user
   * @throws UnsupportedError for what the format cannot hold, before anything is written
   */
  write(input: ExportInput, output: string): Promise<readonly string[]>;
  /** Lines about what to do with an output, for the user. Default: none. */
  readonly next?: (output: string) => readonly string[];
}

/** A target for models, with an adapter or without one, checked by the compiler; see {@link ExportTarget}. */
export function defineTarget<const Name extends string>(
  target: Omit<ExportTarget<Name>, 'ofAdapter'>,
): ExportTarget<Name> {
  return Object.freeze({ ...target, ofAdapter: false });
}

/** A target that is made of an adapter. Without one it is refused. */
export function defineAdapterTarget<const Name extends string>(
  target: Omit<ExportTarget<Name>, 'ofAdapter' | 'write'> & {
    write(input: AdapterInput, output: string): Promise<readonly string[]>;
  },
): ExportTarget<Name> {
  const write: ExportTarget['write'] = async (input, output) => {
    if (!hasAdapter(input)) throw needsAdapter(target.name);
    return target.write(input, output);
  };
  return Object.freeze({ ...target, ofAdapter: true, write });
}

/** Whether a model is exported with an adapter. */
export function hasAdapter<I extends Pick<ExportInput, 'tuned'>>(
  input: I,
): input is I & Pick<AdapterInput, 'tuned' | 'adapter'> {
  return input.tuned.kind === 'adapter';
}

/** The error for a target that is made of an adapter, where there is none. */
export function needsAdapter(name: string): UnsupportedError {
  return new UnsupportedError(
    `export to ${name}: it is made of an adapter, and none is given; give --adapter, or choose safetensors, gguf or modelfile, which ` +
      'hold a model alone, too',
  );
}

/**
 * The point that a calibration has reached, in a file beside that of its result: a calibration that was cut off goes on from there, and
 * gives the same bits as one that was not.
 */
import { existsSync } from 'node:fs';
import { z } from 'zod';
import { tensorsDigest } from '../adapters/adapter_metadata.ts';
import { Calibration, type CalibrationFacts, factsSchema } from '../adapters/calibration.ts';
import { ArgumentError, FormatError } from '../errors.ts';
import { removeFile } from '../io/files.ts';
import { loadSafetensors, saveSafetensors } from '../io/safetensors.ts';
import type { Tensor } from '../tensor.ts';

/** The sums of a calibration after some micro-batch. */
export interface Reached {
  readonly tensors: Readonly<Record<string, Tensor>>;
  readonly counts: Readonly<Record<string, number>>;
}

/** Keys of the file's metadata. */
const kReached = 'balora_calibration_part';
const kTensors = 'balora_tensors';
const kEvery = 5 * 60_000; // ms between two files
const kAdvice = 'remove it to calibrate from the beginning';

interface Options {
  /** File of the result; undefined: the calibration cannot go on once it is cut off. */
  readonly file: string | undefined;
  readonly facts: CalibrationFacts;
  /** Whatever else the sums depend on. */
  readonly maxBytes: number;
  readonly seed: number;
  readonly device: string;
  readonly signal: AbortSignal | undefined;
}

/** The metadata of the file as JSON. */
const kKept = z.object({
  facts: z.object(factsSchema),
  maxBytes: z.number(),
  seed: z.number(),
  counts: z.record(z.string(), z.number()),
});

/** The value of a JSON; undefined for a text that is none. */
function jsonOf(text: string | undefined): unknown {
  try {
    return JSON.parse(text ?? '');
  } catch {
    return undefined;
  }
}

/** Keeper of the point that a calibration has reached. */
export class CalibrationState {
  #written = Date.now();

  private constructor(
    private readonly options: Options,
    /** The point at which the calibration was cut off before; null: it begins. The tensors are the caller's. */
    readonly found: Reached | null,
  ) {}

  /** Path of the file for a calibration whose result goes to `file`. */
  static pathOf(file: string): string {
    return `${file}.part`;
  }

  /** @throws ArgumentError for a point of another calibration, FormatError for a file that is damaged */
  static async open(options: Options): Promise<CalibrationState> {
    const { file, facts, maxBytes, seed, device } = options;
    const path = file && CalibrationState.pathOf(file);
    if (path === undefined || !existsSync(path)) return new CalibrationState(options, null);
    const { tensors, metadata } = await loadSafetensors(path, { device });
    const refuse = (error: Error): never => {
      for (const tensor of Object.values(tensors)) tensor.dispose();
      throw error;
    };
    if (metadata[kTensors] !== (await tensorsDigest(tensors))) {
      const message = `${path}: the tensors are not those that were saved: the file is damaged`;
      refuse(new FormatError(message, { path, advice: kAdvice }));
    }
    const found = kKept.safeParse(jsonOf(metadata[kReached]));
    if (!found.success) {
      const [issue] = found.error.issues as [z.core.$ZodIssue];
      const where = [kReached, ...issue.path].join('.');
      return refuse(
        new FormatError(`${path}: ${where}: ${issue.message}`, { path, advice: kAdvice }),
      );
    }
    const kept = found.data;
    const other = new Calibration(kept.facts, {}).difference(facts);
    const difference =
      other ??
      (kept.maxBytes !== maxBytes
        ? `with maxBytes ${kept.maxBytes}, not ${maxBytes}`
        : kept.seed !== seed
          ? `with the seed ${kept.seed}, not ${seed}`
          : null);
    if (difference !== null) {
      refuse(
        new ArgumentError(
          `${path}: belongs to a calibration that was cut off, and that was made ${difference}; ${kAdvice}`,
        ),
      );
    }
    return new CalibrationState(options, { tensors, counts: kept.counts });
  }

  /**
   * Ends a micro-batch: writes the point that was reached where it is time, and where the calibration is stopped.
   * @throws the signal's reason
   */
  async after(reached: () => Reached): Promise<void> {
    const { file, facts, maxBytes, seed, signal } = this.options;
    const isDue = signal?.aborted === true || Date.now() - this.#written >= kEvery;
    if (file !== undefined && isDue) {
      const { tensors, counts } = reached();
      await saveSafetensors(CalibrationState.pathOf(file), tensors, {
        [kReached]: JSON.stringify({ facts, maxBytes, seed, counts }),
        [kTensors]: await tensorsDigest(tensors),
      });
      this.#written = Date.now();
    }
    signal?.throwIfAborted();
  }

  /** Removes the file, once the result is there. */
  async end(): Promise<void> {
    const { file } = this.options;
    if (file !== undefined) await removeFile(CalibrationState.pathOf(file));
  }
}

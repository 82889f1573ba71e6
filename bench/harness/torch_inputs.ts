/** The files that the PyTorch recipe reads: the row's own weights and micro-batches, so that both sides do the same work. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Batch } from '../../lib/data/collate.ts';
import { kIgnoredTarget } from '../../lib/ignored_target.ts';
import { saveModel } from '../../lib/models/index.ts';
import { writeEncoderInputs } from './encoder_setup.ts';
import { type Sizes, shapeNamed, sizesOf } from './shapes.ts';
import { openSubject, type SubjectOptions } from './subject.ts';
import type { Workload } from './types.ts';
import { workloadData } from './workload_batches.ts';

export interface TorchInputs extends SubjectOptions {
  readonly folder: string;
  /** Workload whose micro-batches are written. Default: none, only the weights. */
  readonly workload?: Workload | undefined;
  readonly dataFile?: string | undefined;
  /** Writes no weights: both sides draw their own (writing those of a large model would take longer than its steps). */
  readonly ownWeights?: boolean | undefined;
  /** Number of micro-batches. */
  readonly count: number;
}

/** Writes config.json, model.safetensors (unless `ownWeights`) and batches.json. */
export async function writeTorchInputs(input: TorchInputs): Promise<null> {
  const { folder, workload, count, model: path, dataFile } = input;
  if (workload?.data === 'sst2') {
    await writeEncoderInputs({ ...input, workload });
    return null;
  }
  const sizes = await (input.ownWeights ? writeShape(input) : writeWeights(input));
  if (workload === undefined) return null;
  const data = await workloadData(workload, { vocabulary: sizes.v, count, model: path, dataFile });
  try {
    const batches: RecipeRow[][] = [];
    for await (const batch of data.source.batches(0, 0)) batches.push(recipeRows(batch));
    await writeFile(join(folder, 'batches.json'), JSON.stringify(batches));
  } finally {
    await data.close();
  }
  return null;
}

async function writeWeights(input: TorchInputs): Promise<Sizes> {
  const { workload, folder } = input;
  const { model, sizes } = await openSubject({ ...input, vocabulary: workload?.vocabulary });
  await saveModel(model, folder);
  model.dispose();
  return sizes;
}

async function writeShape({ folder, shape: name }: TorchInputs): Promise<Sizes> {
  const shape = shapeNamed(name);
  await writeFile(join(folder, 'config.json'), JSON.stringify(shape));
  return sizesOf(shape);
}

interface RecipeRow {
  readonly ids: number[];
  /** The ids where they are supervised, otherwise `kIgnoredTarget`; not shifted, as transformers expects them. */
  readonly labels: number[];
}

/** A micro-batch in the recipe's format. */
export function recipeRows({ inputIds, targets, cuSeqlens }: Batch): RecipeRow[] {
  return Array.from({ length: cuSeqlens.length - 1 }, (_, b) => {
    const [start, end] = [cuSeqlens[b] as number, cuSeqlens[b + 1] as number];
    const ids = Array.from(inputIds.subarray(start, end));
    const labels = ids.map((id, t) => {
      const supervised = t > 0 && (targets[start + t - 1] as number) >= 0;
      return supervised ? id : kIgnoredTarget;
    });
    return { ids, labels };
  });
}

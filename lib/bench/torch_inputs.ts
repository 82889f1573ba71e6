/** The files that the PyTorch recipe reads: the row's own weights and micro-batches, so that both sides do the same work. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Batch } from '../data/collate.ts';
import { saveModel } from '../models/index.ts';
import { openSubject, type SubjectOptions } from './subject.ts';
import type { Workload } from './types.ts';
import { workloadData } from './workload_batches.ts';

export interface TorchInputs extends SubjectOptions {
  readonly folder: string;
  /** Left out: weights alone. */
  readonly workload?: Workload | undefined;
  readonly dataFile?: string | undefined;
  /** Micro-batches wanted. */
  readonly count: number;
}

/** Writes config.json, model.safetensors and batches.json. */
export async function writeTorchInputs(input: TorchInputs): Promise<null> {
  const { folder, workload, count, model: path, dataFile } = input;
  const { model, sizes } = await openSubject({ ...input, vocabulary: workload?.vocabulary });
  await saveModel(model, folder);
  model.dispose();
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

export interface RecipeRow {
  readonly ids: number[];
  /** The ids where they are supervised, else -100; not shifted, as transformers takes them. */
  readonly labels: number[];
}

/** A micro-batch as the recipe takes it. */
export function recipeRows({ inputIds, targets, cuSeqlens }: Batch): RecipeRow[] {
  return Array.from({ length: cuSeqlens.length - 1 }, (_, b) => {
    const [start, end] = [cuSeqlens[b] as number, cuSeqlens[b + 1] as number];
    const ids = Array.from(inputIds.subarray(start, end));
    const labels = ids.map((id, t) => {
      const supervised = t > 0 && (targets[start + t - 1] as number) >= 0;
      return supervised ? id : -100;
    });
    return { ids, labels };
  });
}

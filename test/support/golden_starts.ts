/** The reference numbers of the methods' starts (golden/methods/starts) and the tiny model that they are for. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { fixturePath } from './fixtures.ts';
import { type GoldenArray, goldenArrays } from './golden.ts';
import { goldenBatch, type PaddedBatch } from './golden_batch.ts';
import { sharedPath } from './shared.ts';

const kBase = fixturePath('architectures/llama-untied-gqa');
export const kStarts = 'golden/methods/starts';

export const load = (): Promise<CausalLM> =>
  AutoModelForCausalLM.fromPretrained(join(kBase, 'model'), { dtype: 'f32' });

/** The numbers beside the tensors of a start, in the form that the test declares. */
export const factsOf = <F>(folder: string): F =>
  JSON.parse(readFileSync(sharedPath(`${kStarts}/${folder}/expected.json`), 'utf8')) as F;

export const arrays = (path: string): Map<string, GoldenArray> =>
  goldenArrays(sharedPath(`${kStarts}/${path}.safetensors`));

export const numbers = (array: GoldenArray): number[] => Array.from(array.data as Float32Array);

/** The batch on which the reference evaluates and trains. */
export const evaluation = (): PaddedBatch =>
  goldenBatch(goldenArrays(join(kBase, 'inputs.safetensors')), {
    ...{ ids: 'input_ids', mask: 'attention_mask', labels: 'labels' },
  });

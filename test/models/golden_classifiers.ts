// Golden classifiers: a padded batch as unpadded rows, with a label and expected outputs for each sequence.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { loadSafetensors } from '../../lib/io/safetensors.ts';
import type { Model, ModelBatch, SequenceClassifier } from '../../lib/models/index.ts';
import type { Linear } from '../../lib/nn/index.ts';
import { add, crossEntropy, mean, reshape, square, sub } from '../../lib/ops/index.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';
import { architecture, type Golden } from './golden.ts';

export interface ClassifierGolden {
  readonly folder: string;
  readonly batch: ModelBatch;
  readonly labels: readonly number[];
  /** Row n of the batch is row rows[n] of the padded (B T) outputs. */
  readonly rows: readonly number[];
  readonly expected: Record<string, Tensor>;
  readonly facts: Golden['facts'];
}

/** The rows of a right-padded batch where the mask is 1. @param ids, mask, types (B T) */
export function unpadded(
  { ids, mask, types }: { ids: number[]; mask: number[]; types?: number[] | undefined },
  width: number,
): { batch: ModelBatch; rows: number[] } {
  const rows = mask.flatMap((bit, i) => (bit ? [i] : []));
  const segments = mask.length / width;
  const counts = Array.from({ length: segments }, (_, b) =>
    mask.slice(b * width, (b + 1) * width).reduce((sum, bit) => sum + bit, 0),
  );
  const cuSeqlens = new Int32Array(segments + 1);
  counts.forEach((count, b) => {
    cuSeqlens[b + 1] = (cuSeqlens[b] as number) + count;
  });
  const pick = (from: number[]) => Int32Array.from(rows, (row) => from[row] as number);
  return {
    rows,
    batch: {
      inputIds: pick(ids),
      positions: Int32Array.from(rows, (row) => row % width),
      cuSeqlens,
      ...(types ? { tokenTypeIds: pick(types) } : {}),
    },
  };
}

export async function readClassifierGolden(name: string): Promise<ClassifierGolden> {
  const folder = architecture(name);
  const { tensors: inputs } = await loadSafetensors(join(folder, 'inputs.safetensors'));
  const { tensors: expected } = await loadSafetensors(join(folder, 'expected.safetensors'));
  const numbers = (key: string) => Array.from((inputs[key] as Tensor).dataSync(), Number);
  const types = 'token_type_ids' in inputs ? numbers('token_type_ids') : undefined;
  const padded = { ids: numbers('input_ids'), mask: numbers('attention_mask'), types };
  const width = (inputs.input_ids as Tensor).shape[1] as number;
  return {
    folder,
    ...unpadded(padded, width),
    labels: numbers('labels'),
    expected,
    facts: JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')),
  };
}

/** Mean cross-entropy, or mean squared error, as transformers computes them. */
export function goldenLoss(model: SequenceClassifier, { batch, labels }: ClassifierGolden): Tensor {
  const logits = model.logits(model.forward(batch), batch);
  if (model.problemType !== 'regression') {
    return crossEntropy(logits, tensor(Int32Array.from(labels)));
  }
  const wanted = tensor(Float64Array.from(labels), { dtype: logits.dtype });
  return mean(square(sub(reshape(logits, [labels.length]), wanted)));
}

/**
 * Adds the pairs and the trained head of a PEFT folder to a model by hooks (s = alpha / r); all of them require gradients.
 * @returns every tensor under its key in the file
 */
export async function hookAdapter(model: Model, folder: string): Promise<Record<string, Tensor>> {
  const config = JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'));
  const { tensors } = await loadSafetensors(join(folder, 'adapter_model.safetensors'));
  const parameters = new Map(model.namedParameters());
  const hooked: Record<string, Tensor> = {};
  const masterOf = (key: string) => {
    const master = noGrad(() => add((tensors[key] as Tensor).to('f32'), 0));
    master.requiresGrad = true;
    hooked[key] = master;
    return master;
  };
  for (const key of Object.keys(tensors)) {
    const path = key.replace('base_model.model.', '');
    const pair = /^(.*)\.lora_A\.weight$/.exec(path);
    if (pair !== null) {
      const [a, b] = [masterOf(key), masterOf(key.replace('lora_A', 'lora_B'))];
      const scale = config.lora_alpha / (a.shape[0] as number);
      const lowRank = [{ a, b, scale }];
      (model.module(pair[1] as string) as Linear).adapter = { update: () => ({ lowRank }) };
    } else if (!path.includes('.lora_')) {
      model.replaceParameter(parameters.get(path) as Tensor, masterOf(key));
    }
  }
  return hooked;
}

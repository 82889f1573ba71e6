/**
 * The encoder's row: a LoRA step of all-MiniLM-L6-v2 with a head of two labels on SST-2's micro-batches, as
 * bench/torch/minilm_step.py computes it. It uses the real model and rows where --model is the folder of a bert and --data a .tsv
 * file, otherwise random weights and ids of the same shapes (also where the other rows measure another model).
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { sharesProcessMemory } from '../../lib/device.ts';
import { readText } from '../../lib/io/regular_file.ts';
import {
  AutoModelForSequenceClassification,
  type SequenceClassifier,
  saveModel,
} from '../../lib/models/index.ts';
import { resolveMethod } from '../../lib/train/methods.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { type EncoderFiles, encoderData } from './encoder_batches.ts';
import { encoderSizes, kMiniLm, kTinyBert } from './shapes.ts';
import type { StepRowInput, StepSetup } from './step_setup.ts';
import type { BenchDType, Workload } from './types.ts';
import { TimedSource } from './workload_batches.ts';

/** The options that choose the encoder: a real one with its data, or a shape. */
type EncoderChoice = Pick<StepRowInput, 'model' | 'dataFile' | 'shape'>;

const kLabels = 2;
const kTargets = ['query', 'key', 'value', 'dense'];
const kLearningRate = 5e-4;

/** Model, micro-batches and trainer; see StepSetup. */
export async function encoderSetup(input: StepRowInput, total: number): Promise<StepSetup> {
  const { workload, dtype } = input;
  const { model, files, notes } = await openEncoder(input, dtype);
  const data = await encoderData(workload, { vocabulary: model.vocabSize, count: total, files });
  const source = new TimedSource(data.source);
  const { adapter, regularizers } = resolveMethod(workload.method, {
    task: 'sequence-classification',
    adapter: { r: workload.rank, loraAlpha: 2 * workload.rank, targetModules: kTargets },
  });
  const tuned = await AdapterModel.create(model, adapter ?? {});
  const trainer = new Trainer({
    ...{ tuned, data: source, regularizers, learningRate: kLearningRate },
    maxSteps: total,
    maxGradNorm: 0, // as in the PyTorch script
    captureGraphs: !sharesProcessMemory(),
  });
  return {
    ...{ trainer, source },
    sizes: encoderSizes(model.configJson() as unknown as typeof kMiniLm, kLabels),
    name: files === null ? 'all-minilm-l6-v2' : nameOf(files.model),
    notes: [...notes, ...data.notes, 'PyTorch in f32'],
    dispose: async () => {
      tuned.dispose();
      model.dispose();
    },
  };
}

/** Where the inputs of the script in PyTorch are written, and which of them. */
interface EncoderInputs extends EncoderChoice {
  readonly folder: string;
  readonly workload: Workload;
  /** Number of micro-batches. */
  readonly count: number;
}

/** Writes the weights in f32 and the micro-batches for bench/torch/minilm_step.py. */
export async function writeEncoderInputs(input: EncoderInputs): Promise<void> {
  const { folder, workload, count } = input;
  const { model, files } = await openEncoder(input, 'f32');
  await saveModel(model, folder);
  const { source } = await encoderData(workload, { vocabulary: model.vocabSize, count, files });
  model.dispose();
  const batches: object[] = [];
  for await (const { inputIds, cuSeqlens, labels } of source.batches(0, 0)) {
    const ids = Array.from(labels, (_, b) =>
      Array.from(inputIds.subarray(cuSeqlens[b], cuSeqlens[b + 1])),
    );
    batches.push({ ids, labels: Array.from(labels) });
  }
  await writeFile(join(folder, 'batches.json'), JSON.stringify(batches));
}

async function openEncoder(
  { model: path, dataFile, shape }: EncoderChoice,
  dtype: BenchDType,
): Promise<{ model: SequenceClassifier; files: EncoderFiles | null; notes: string[] }> {
  const options = { numLabels: kLabels, dtype };
  if (path !== undefined && dataFile?.endsWith('.tsv') && (await isBert(path))) {
    const model = await AutoModelForSequenceClassification.fromPretrained(path, options);
    return { model, files: { model: path, data: dataFile }, notes: [] };
  }
  const config = shape === 'tiny' ? kTinyBert : kMiniLm;
  const model = await AutoModelForSequenceClassification.fromConfig(config, options);
  return { model, files: null, notes: ['random weights'] };
}

async function isBert(path: string): Promise<boolean> {
  try {
    const config = JSON.parse(await readText(join(path, 'config.json')));
    return config.model_type === 'bert';
  } catch {
    return false; // a GGUF file, or a name on the Hub: the language model of the other rows
  }
}

function nameOf(path: string): string {
  return path.split('/').filter(Boolean).at(-1) ?? path;
}

/** Loading of encoder-decoders from a folder or a GGUF file. */
import { join } from 'node:path';
import { findModel } from '../io/hub.ts';
import { checkCall } from '../options/call.ts';
import {
  buildOn,
  type FromPretrainedOptions,
  finishLoading,
  headIsEmbedding,
  kHead,
  loadTable,
  refuseBlocks,
} from './auto.ts';
import { type Counts, checkCounts, modelTypeOf, readConfigJson } from './config_keys.ts';
import { HfWeights } from './hf_weights.ts';
import { findFiles, openGguf, requireDevice } from './opened.ts';
import { seq2SeqFamilyOf, seq2SeqFamilyOfGguf } from './registry.ts';
import { RenamedWeights } from './renamed_weights.ts';
import type { Seq2SeqFamily, Seq2SeqLM } from './seq2seq_lm.ts';
import { WeightLoader, type WeightSource } from './weights.ts';

/** Loads encoder-decoders; see {@link AutoModelForSeq2SeqLM.fromPretrained}. */
export const AutoModelForSeq2SeqLM = {
  /**
   * Loads an encoder-decoder with a head over its vocabulary. A head in the file that differs from the embedding is not
   * tied, whatever the configuration says. Dropout of the configuration is not applied.
   * @param nameOrPath a Hugging Face folder with safetensors, a GGUF file (or a folder with one), or an id on the Hub
   * @throws UnsupportedError for a model_type that is no encoder-decoder, or a config key that is not known;
   *   FormatError and others as AutoModelForCausalLM does
   * @example
   * const model = await AutoModelForSeq2SeqLM.fromPretrained('./t5-small');
   * const loss = crossEntropy(model.logits(model.forward({ ...source, decoder })), targets);
   */
  async fromPretrained(
    nameOrPath: string,
    options: FromPretrainedOptions = {},
  ): Promise<Seq2SeqLM> {
    checkCall('fromPretrained', options, loadTable);
    refuseBlocks(options);
    const { dtype = 'f32', device, trainable = false, checkFinite = true } = options;
    requireDevice(options);
    const { folder, path, family, json, stored } = await openSeq2Seq(nameOrPath, options);
    try {
      const configured = configure({ family, json, path, stored }, options);
      const source = new RenamedWeights(stored, family.rename);
      const tied = configured.tied && (await headIsEmbedding(source, family.embedding));
      const { onProgress } = options;
      const ignore = tied ? [kHead] : [];
      const read = { dtype, checkFinite, share: !trainable, ignore, onProgress };
      const origin = { nameOrPath, folder, dtype };
      const model = buildOn(device, () =>
        WeightLoader.build(source, read, (weights) => configured.make({ weights, origin, tied })),
      );
      await finishLoading(model, stored, { trainable });
      return model;
    } finally {
      stored.close();
    }
  },
};

/**
 * Checks that an encoder-decoder can be loaded, by its configuration, without reading a weight.
 * @throws as {@link AutoModelForSeq2SeqLM.fromPretrained} does
 */
export async function checkSeq2SeqLM(
  nameOrPath: string,
  options: FromPretrainedOptions = {},
): Promise<void> {
  requireDevice(options);
  const { family, json, path, stored } = await openSeq2Seq(nameOrPath, options);
  try {
    configure({ family, json, path, stored }, options);
  } finally {
    stored.close();
  }
}

/** Reads the configuration, and checks its counts against the weights. */
function configure(
  { family, json, path, stored }: Omit<OpenedSeq2Seq, 'folder'>,
  options: FromPretrainedOptions,
): ReturnType<Seq2SeqFamily['configure']> {
  const counts: Counts = new Map();
  const configured = family.configure(json, { ...options, path, counts });
  checkCounts(path, counts, stored.shapes);
  return configured;
}

/** A checkpoint's files with their configuration parsed and their weights not read yet. */
interface OpenedSeq2Seq {
  /** The folder, or the GGUF file. */
  readonly folder: string;
  /** Path of the configuration, for messages. */
  readonly path: string;
  readonly family: Seq2SeqFamily;
  readonly json: Record<string, unknown>;
  readonly stored: WeightSource;
}

async function openSeq2Seq(
  nameOrPath: string,
  options: FromPretrainedOptions,
): Promise<OpenedSeq2Seq> {
  const { path: folder, gguf } = await findFiles(await findModel(nameOrPath, options));
  if (gguf) {
    const { source, ...opened } = await openGguf(folder, options, seq2SeqFamilyOfGguf);
    return { folder, path: folder, ...opened, stored: source };
  }
  const path = join(folder, 'config.json');
  const json = await readConfigJson(path);
  const family = seq2SeqFamilyOf(modelTypeOf(json, path), path);
  return { folder, path, family, json, stored: HfWeights.open(folder, '') };
}

/** Loading of encoder-decoders from a folder or a GGUF file. */
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
import { configured, type OpenedModel, openModel, requireDevice } from './opened.ts';
import { seq2SeqFamilyOf, seq2SeqFamilyOfGguf } from './registry.ts';
import { RenamedWeights } from './renamed_weights.ts';
import type { Seq2SeqFamily, Seq2SeqLM } from './seq2seq_lm.ts';
import { WeightLoader } from './weights.ts';

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
    const opened = await openSeq2Seq(nameOrPath, options);
    const { folder, family, stored } = opened;
    try {
      const config = configure(opened, options);
      const source = new RenamedWeights(stored, family.rename);
      const tied = config.tied && (await headIsEmbedding(source, family.embedding));
      const { onProgress } = options;
      const ignore = tied ? [kHead] : [];
      const read = { dtype, checkFinite, share: !trainable, ignore, onProgress };
      const origin = { nameOrPath, folder, dtype };
      const model = buildOn(device, () =>
        WeightLoader.build(source, read, (weights) => config.make({ weights, origin, tied })),
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
  const opened = await openSeq2Seq(nameOrPath, options);
  try {
    configure(opened, options);
  } finally {
    opened.stored.close();
  }
}

function configure(
  opened: OpenedModel<Seq2SeqFamily>,
  options: FromPretrainedOptions,
): ReturnType<Seq2SeqFamily['configure']> {
  const { family, json } = opened;
  return configured(opened, options, (own) => family.configure(json, own));
}

async function openSeq2Seq(
  nameOrPath: string,
  options: FromPretrainedOptions,
): Promise<OpenedModel<Seq2SeqFamily>> {
  const families = { ofType: seq2SeqFamilyOf, ofGguf: seq2SeqFamilyOfGguf };
  return openModel(await findModel(nameOrPath, options), options, families);
}

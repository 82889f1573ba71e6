/** Loading an encoder-decoder. */
import { buildOn, type FromPretrainedOptions, headIsEmbedding, kHead, settle } from './auto.ts';
import { HfWeights } from './hf_weights.ts';
import { openCheckpoint } from './opened.ts';
import { seq2SeqFamilyOf } from './registry.ts';
import { RenamedWeights } from './renamed_weights.ts';
import type { Seq2SeqLM } from './seq2seq_lm.ts';
import { WeightLoader } from './weights.ts';

/** Loads encoder-decoders; see {@link AutoModelForSeq2SeqLM.fromPretrained}. */
export const AutoModelForSeq2SeqLM = {
  /**
   * Loads an encoder-decoder with a head over its vocabulary. A head in the file that differs from the embedding is not
   * tied, whatever the configuration says. Dropout of the configuration is not applied.
   * @param nameOrPath a Hugging Face folder with safetensors, or an id on the Hub
   * @throws UnsupportedError for a model_type that is no encoder-decoder, a GGUF file, or a config key that is not known;
   *   FormatError and others as AutoModelForCausalLM does
   * @example
   * const model = await AutoModelForSeq2SeqLM.fromPretrained('./t5-small');
   * const loss = crossEntropy(model.logits(model.forward({ ...source, decoder })), targets);
   */
  async fromPretrained(
    nameOrPath: string,
    options: FromPretrainedOptions = {},
  ): Promise<Seq2SeqLM> {
    const { dtype = 'f32', device, trainable = false, checkFinite = true } = options;
    const { folder, path, json } = await openCheckpoint(nameOrPath, options, 'an encoder-decoder');
    const family = seq2SeqFamilyOf(String(json.model_type ?? 'none'), path);
    const configured = family.configure(json, { ...options, path });
    const source = new RenamedWeights(HfWeights.open(folder, ''), family.rename);
    try {
      const tied = configured.tied && (await headIsEmbedding(source, family.embedding));
      const read = { dtype, checkFinite, share: !trainable, ignore: tied ? [kHead] : [] };
      const origin = { nameOrPath, folder, dtype };
      const model = buildOn(device, () =>
        WeightLoader.build(source, read, (weights) => configured.make({ weights, origin, tied })),
      );
      await settle(model, { trainable });
      return model;
    } finally {
      source.close();
    }
  },
};

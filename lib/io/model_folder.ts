/** The contents of a Hugging Face model folder, for all code that looks into one. */

/** File names of the weights: all in one file, or the index of those in several. */
export const SINGLE_WEIGHTS = 'model.safetensors';
export const WEIGHTS_INDEX = 'model.safetensors.index.json';

/** Settings of text generation beside the weights. */
export const GENERATION_CONFIG = 'generation_config.json';

/** The description of a model on the Hub. */
export const MODEL_CARD = 'README.md';
/** The picture in it. */
export const LOSS_PLOT = 'loss.svg';

/** Files that belong to the vocabulary. */
export const TOKENIZER_FILES: readonly string[] = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'vocab.txt',
  'vocab.json',
  'merges.txt',
  'spiece.model',
  'tokenizer.model',
  'added_tokens.json',
];

/** Files beside the weights that saving a model copies. */
export const COMPANIONS: readonly string[] = [...TOKENIZER_FILES, GENERATION_CONFIG];

/** Whether a folder of these files is a complete model: GGUF files beside it are then other forms of it, and are ignored. */
export function isModelFolder(names: readonly string[]): boolean {
  const weights = names.includes(SINGLE_WEIGHTS) || names.includes(WEIGHTS_INDEX);
  return weights && names.includes('config.json');
}

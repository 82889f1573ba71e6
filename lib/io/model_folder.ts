/** What a Hugging Face model folder holds, for everyone who looks into one. */

/** The weights in one file, or the index of those in several. */
export const SINGLE_WEIGHTS = 'model.safetensors';
export const WEIGHTS_INDEX = 'model.safetensors.index.json';

/** Files beside the weights that go with the vocabulary: a saved model takes them along. */
export const COMPANIONS: readonly string[] = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'generation_config.json',
  'vocab.txt',
  'vocab.json',
  'merges.txt',
  'spiece.model',
  'tokenizer.model',
  'added_tokens.json',
];

/** Whether a folder of these files is a model by itself: then GGUF files beside it are other forms of it, and not looked at. */
export function isModelFolder(names: readonly string[]): boolean {
  const weights = names.includes(SINGLE_WEIGHTS) || names.includes(WEIGHTS_INDEX);
  return weights && names.includes('config.json');
}

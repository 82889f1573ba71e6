/** Corrections of decoders of @huggingface/tokenizers 0.2, which are those of decode_stream.ts, too. */
import { compilePattern, type Pattern, replaceMatches } from './regexes.ts';

/** A decoder of the package. */
interface Decoder {
  readonly config: Readonly<Record<string, unknown>>;
  readonly decoders?: unknown;
  text_decoder?: InstanceType<typeof TextDecoder>;
  decode_chain(tokens: string[]): string[];
}

/**
 * Corrects a decoder and those that it contains, in place: U+FEFF at the beginning of the bytes is kept, which the package removes as a
 * byte-order mark; Metaspace removes the marks before the first word only if its scheme adds one; a replacement is a plain text.
 */
export function repairDecoder(node: unknown): void {
  // The package's components are callable: functions with properties.
  if (typeof node !== 'function') return;
  const decoder = node as unknown as Decoder;
  const { config } = decoder;
  if (Array.isArray(decoder.decoders)) decoder.decoders.forEach(repairDecoder);
  if (decoder.text_decoder) decoder.text_decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  if (config.type === 'Metaspace') {
    decoder.decode_chain = (tokens) => tokens.map((token, i) => unmarked(config, token, i === 0));
  }
  if (config.type === 'Replace') {
    const pattern = compilePattern(config.pattern as Pattern);
    const content = (config.content ?? '') as string;
    decoder.decode_chain = (tokens) =>
      tokens.map((token) => replaceMatches(token, pattern, content));
  }
}

/** A token with spaces in the place of Metaspace's marks, and without those of the first token where the scheme adds one. */
export function unmarked(
  { replacement = '\u2581', prepend_scheme: scheme, add_prefix_space: prefix }: Decoder['config'],
  token: string,
  isFirst: boolean,
): string {
  const adds = scheme === undefined || scheme === null ? prefix !== false : scheme !== 'never';
  return token.replaceAll(String(replacement), () => (isFirst && adds ? '' : ' '));
}

/**
 * SentencePiece's compiled normalisation: a map from character sequences to their replacements, as a double-array trie (Darts)
 * over UTF-8 bytes, whose values are positions in a block of zero-terminated strings. @huggingface/tokenizers uses NFKC instead,
 * which differs from the map in many characters.
 */
import { malformed } from './tokenizer_checks.ts';

/** Longer graphemes are looked up character by character only, as Hugging Face's tokenizers do. */
const kLongestWholeGrapheme = 6;
/** The longest replacement in bytes; NFKC's longest has 33. */
const kLongestReplacement = 256;

export class PrecompiledMap {
  readonly #units: Uint32Array;
  readonly #texts: Uint8Array;
  readonly #graphemes = new Intl.Segmenter('und', { granularity: 'grapheme' });
  readonly #memo = new Map<string, string | null>();

  /**
   * Reads the map.
   * @param base64 `precompiled_charsmap` of a tokenizer.json: the trie's size in bytes (u32), its units (u32), the texts
   * @throws FormatError if it is incomplete
   */
  constructor(base64: string) {
    const bytes = Buffer.from(base64, 'base64');
    const size = bytes.length >= 4 ? bytes.readUInt32LE(0) : 0;
    if (size === 0 || size % 4 !== 0 || 4 + size > bytes.length) {
      throw malformed(
        `precompiled_charsmap has ${bytes.length} bytes, but its trie should have ${size}`,
      );
    }
    this.#units = Uint32Array.from({ length: size / 4 }, (_, i) => bytes.readUInt32LE(4 + 4 * i));
    this.#texts = bytes.subarray(4 + size);
  }

  /** The text with every grapheme replaced that is in the map; of other graphemes, each character that is in the map. */
  normalize(text: string): string {
    let result = '';
    for (const { segment } of this.#graphemes.segment(text)) {
      result += this.#grapheme(segment);
    }
    return result;
  }

  #grapheme(grapheme: string): string {
    const whole =
      Buffer.byteLength(grapheme) < kLongestWholeGrapheme ? this.#replacement(grapheme) : null;
    if (whole !== null) return whole;
    let result = '';
    for (const char of grapheme) result += this.#replacement(char) ?? char;
    return result;
  }

  #replacement(text: string): string | null {
    let found = this.#memo.get(text);
    if (found === undefined) {
      const at = this.#shortestPrefix(Buffer.from(text));
      found = at === null ? null : this.#textAt(at);
      this.#memo.set(text, found);
    }
    return found;
  }

  /** The value of the shortest key that the bytes begin with; null if there is none. */
  #shortestPrefix(bytes: Uint8Array): number | null {
    let node = 0;
    let unit = this.#unit(node);
    node ^= offsetOf(unit);
    for (const byte of bytes) {
      if (byte === 0) return null;
      node ^= byte;
      unit = this.#unit(node);
      if (labelOf(unit) !== byte) return null;
      node ^= offsetOf(unit);
      if ((unit >>> 8) & 1) return this.#unit(node) & 0x7fffffff;
    }
    return null;
  }

  #unit(at: number): number {
    const unit = this.#units[at];
    if (unit === undefined) throw malformed('precompiled_charsmap points outside of its trie');
    return unit;
  }

  #textAt(start: number): string {
    const end = this.#texts.indexOf(0, start);
    const bytes = this.#texts.subarray(start, end < 0 ? this.#texts.length : end);
    if (bytes.length > kLongestReplacement) {
      throw malformed(
        `precompiled_charsmap replaces a character by ${bytes.length} bytes, more than the ${kLongestReplacement} that are read`,
      );
    }
    return new TextDecoder().decode(bytes);
  }
}

function labelOf(unit: number): number {
  return (unit & 0x800000ff) >>> 0;
}

function offsetOf(unit: number): number {
  return (unit >>> 10) << ((unit & 0x200) >>> 6);
}

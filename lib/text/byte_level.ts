/**
 * The byte alphabet of GPT-2's BPE: every byte has one printable character, so that a vocabulary of strings can hold
 * arbitrary bytes. Printable Latin-1 characters stand for themselves; the other 68 bytes are U+0100, U+0101, ... in order.
 */

function buildAlphabet(): string[] {
  const printable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(printable(byte) ? byte : next++),
  );
}

/** The character that stands for each byte. */
export const kByteToChar: readonly string[] = buildAlphabet();

const kCharToByte = new Map(kByteToChar.map((char, byte) => [char, byte]));

/** The UTF-8 bytes of a text, written in the byte alphabet. */
export function toByteLevel(text: string): string {
  let written = '';
  for (const byte of Buffer.from(text, 'utf8')) written += kByteToChar[byte];
  return written;
}

/** The bytes that a byte-level token stands for; null if a character of it is outside the alphabet. */
export function bytesOfToken(token: string): Uint8Array | null {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = kCharToByte.get(token.charAt(i));
    if (byte === undefined) return null;
    bytes[i] = byte;
  }
  return bytes;
}

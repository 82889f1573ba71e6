/** CRC-32 as in zip and PNG. Node has one from 20.15 on; on an older one it is computed here, slower. */
import * as zlib from 'node:zlib';

const kPolynomial = 0xedb88320; // reversed

/** Of each byte on its own. */
const kTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? kPolynomial : 0);
  return value;
});

/** The checksum from a table, an unsigned 32-bit number. */
export function crc32ByTable(bytes: Uint8Array): number {
  let value = 0xffffffff;
  for (const byte of bytes) value = (value >>> 8) ^ (kTable[(value ^ byte) & 0xff] as number);
  return (value ^ 0xffffffff) >>> 0;
}

const inNode = (zlib as { crc32?: (bytes: Uint8Array) => number }).crc32;

/** The checksum, an unsigned 32-bit number. */
export const crc32: (bytes: Uint8Array) => number = inNode ?? crc32ByTable;

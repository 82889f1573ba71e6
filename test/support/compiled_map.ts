/** SentencePiece's compiled normalisation, built from a list of replacements. */

/**
 * A precompiled_charsmap in base64, as SentencePiece writes it except that the children of every node have
 * a block of 256 entries.
 */
export function compiledMap(entries: Record<string, string>): string {
  interface Node {
    children: Map<number, Node>;
    value?: number;
  }
  const root: Node = { children: new Map() };
  const texts: number[] = [];
  for (const [key, replacement] of Object.entries(entries)) {
    let node = root;
    for (const byte of Buffer.from(key)) {
      let next = node.children.get(byte);
      if (!next) {
        next = { children: new Map() };
        node.children.set(byte, next);
      }
      node = next;
    }
    node.value = texts.length;
    texts.push(...Buffer.from(replacement), 0);
  }
  const units: number[] = [];
  let blocks = 1;
  const place = (node: Node, at: number, label: number): void => {
    const base = 256 * blocks++;
    units[at] = (((at ^ base) << 10) | label | (node.value === undefined ? 0 : 1 << 8)) >>> 0;
    if (node.value !== undefined) units[base] = (node.value | 0x80000000) >>> 0;
    for (const [byte, child] of node.children) place(child, base ^ byte, byte);
  };
  place(root, 0, 0);
  const size = 256 * blocks;
  const bytes = Buffer.alloc(4 + 4 * size + texts.length);
  bytes.writeUInt32LE(4 * size, 0);
  for (let i = 0; i < size; i++) bytes.writeUInt32LE(units[i] ?? 0, 4 + 4 * i);
  bytes.set(texts, 4 + 4 * size);
  return bytes.toString('base64');
}

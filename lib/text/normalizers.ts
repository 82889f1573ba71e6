/**
 * Corrections of normalizers of @huggingface/tokenizers 0.2. BERT's normalizer puts spaces around ideographs, which the package
 * looks for in UTF-16 units, so that those beyond the basic plane stay joined; and the package replaces SentencePiece's compiled
 * character map by NFKC.
 */
import { PrecompiledMap } from './precompiled.ts';

/** The CJK blocks that BERT treats as ideographs. */
const kIdeograph =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu;

interface Normalizer {
  normalizers?: unknown;
  tokenize_chinese_chars?: (text: string) => string;
  charsmap?: string | null;
  normalize: (text: string) => string;
}

/** Corrects a normalizer of the package, and those that it contains, in place. */
export function repairNormalizer(node: unknown): void {
  // The package's components are callable: functions with properties.
  if (typeof node !== 'function') return;
  const normalizer = node as unknown as Normalizer;
  const { normalizers, tokenize_chinese_chars, charsmap } = normalizer;
  if (Array.isArray(normalizers)) normalizers.forEach(repairNormalizer);
  if (tokenize_chinese_chars) {
    normalizer.tokenize_chinese_chars = (text) => text.replace(kIdeograph, ' $& ');
  }
  if (charsmap) {
    const map = new PrecompiledMap(charsmap);
    normalizer.normalize = (text) => map.normalize(text);
  }
}

/**
 * Ids to text, one id at a time: the decoders of a tokenizer.json as stages, each of which passes on at once what later ids cannot
 * change. All parts together are the text that Tokenizer.decode() gives for all ids. Bytes of a character wait for its other
 * bytes, as in a TextDecoder with `stream: true`; bytes that can no longer become a character come out at once as U+FFFD.
 */
import { UnsupportedError } from '../errors.ts';
import { shown } from '../shown.ts';
import { bytesOfToken } from './byte_level.ts';
import { CleanUpStream, cleanUpSpaces } from './clean_up.ts';
import { unmarked } from './decoders.ts';

/** One stage: what a token adds to the tokens that the next stage gets, and what is left at the end. */
interface Stage {
  push(token: string): readonly string[];
  end(): readonly string[];
}

/** The facts of a tokenizer that its stream uses. */
export interface DecodeStreamParts {
  /** `decoder` of tokenizer.json; null: tokens are separated by spaces. */
  readonly decoder: unknown;
  /** The token of an id, undefined for an id without one. */
  readonly tokenOf: (id: number) => string | undefined;
  /** Tokens that are left out of the text. */
  readonly skipped: ReadonlySet<string>;
  /** Added tokens, whose text is not in the alphabet of bytes. */
  readonly added: ReadonlySet<string>;
  /** Whether spaces before punctuation are removed. */
  readonly cleanUp: boolean;
}

/** A text that is decoded id by id. Made by {@link Tokenizer.decodeStream}. */
export class DecodeStream {
  readonly #stages: readonly Stage[];
  readonly #cleanUp: CleanUpStream | null;

  /** @throws UnsupportedError naming a decoder that has no stream */
  constructor(private readonly parts: DecodeStreamParts) {
    this.#stages = stagesOf(parts);
    this.#cleanUp = parts.cleanUp ? new CleanUpStream() : null;
  }

  /** Adds an id, and returns the text that is certain now. An id without a token adds nothing. */
  push(id: number): string {
    const token = this.parts.tokenOf(id);
    if (token === undefined || this.parts.skipped.has(token)) return '';
    const text = this.#through([token], 0).join('');
    return this.#cleanUp === null ? text : this.#cleanUp.push(text);
  }

  /** Returns the rest at the end of the ids: an incomplete character becomes U+FFFD. */
  end(): string {
    let text = '';
    this.#stages.forEach((stage, i) => {
      text += this.#through(stage.end(), i + 1).join('');
    });
    return this.#cleanUp === null ? text : this.#cleanUp.push(text) + this.#cleanUp.end();
  }

  /** Passes tokens through the stages from one on. */
  #through(tokens: readonly string[], first: number): readonly string[] {
    let passed = tokens;
    for (const stage of this.#stages.slice(first)) {
      passed = passed.flatMap((token) => stage.push(token));
    }
    return passed;
  }
}

type Json = Readonly<Record<string, unknown>>;

/** A stage that replaces each token by itself. */
function eachToken(replace: (token: string, isFirst: boolean) => string): Stage {
  let isFirst = true;
  return {
    push: (token) => {
      const replaced = replace(token, isFirst);
      isFirst = false;
      return [replaced];
    },
    end: () => [],
  };
}

function stagesOf({ decoder, added }: DecodeStreamParts): Stage[] {
  if (decoder === null || decoder === undefined) {
    return [eachToken((token, isFirst) => (isFirst ? token : ` ${token}`))];
  }
  const list = listOf(decoder as Json);
  const fused = list.findIndex(({ type }) => type === 'Fuse');
  return list.flatMap((one, i) => {
    if (one.type === 'Fuse') return [];
    // Behind Fuse the whole text is a single token.
    return fused >= 0 && i > fused ? fusedStage(one) : stageOf(one, added);
  });
}

/** The decoders of a sequence, nested ones included. */
function listOf(decoder: Json): Json[] {
  if (decoder.type !== 'Sequence') return [decoder];
  return ((decoder.decoders ?? []) as Json[]).flatMap(listOf);
}

function stageOf(decoder: Json, added: ReadonlySet<string>): Stage {
  switch (decoder.type) {
    case 'ByteLevel':
      return bytes((token) =>
        added.has(token) ? null : (bytesOfToken(token) ?? new TextEncoder().encode(token)),
      );
    case 'ByteFallback':
      return bytes(fallbackByte);
    case 'Replace':
      return eachToken(replacement(decoder));
    case 'Strip': {
      const { content, start, stop } = stripOf(decoder);
      return eachToken((token) => {
        const kept = token.slice(runAtStart(token, content, start));
        return kept.slice(0, kept.length - runAtEnd(kept, content, stop));
      });
    }
    case 'Metaspace':
      return eachToken((token, isFirst) => unmarked(decoder, token, isFirst));
    case 'WordPiece':
      return wordPiece(decoder);
    default:
      throw unsupported(decoder);
  }
}

/** A stage behind Fuse: it sees the parts of one long token. */
function fusedStage(decoder: Json): Stage {
  if (decoder.type === 'Replace') {
    const { String: plain } = (decoder.pattern ?? {}) as { String?: string };
    if (plain?.length === 1) return eachToken(replacement(decoder));
  }
  if (decoder.type !== 'Strip') throw unsupported(decoder);
  const { content, start, stop } = stripOf(decoder);
  let left = start;
  let held = 0;
  return {
    push: (part) => {
      const cut = runAtStart(part, content, left);
      left = cut === part.length ? left - cut : 0;
      const text = content.repeat(held) + part.slice(cut);
      held = runAtEnd(text, content, stop);
      return [text.slice(0, text.length - held)];
    },
    end: () => [],
  };
}

/** A stage that decodes the bytes that tokens stand for; a token without bytes ends a character that is incomplete. */
function bytes(bytesOf: (token: string) => Uint8Array | null): Stage {
  // U+FEFF is a character like others, as in the tokenizer itself.
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  let isOpen = false;
  const close = (): string[] => {
    const rest = isOpen ? decoder.decode() : '';
    isOpen = false;
    return rest === '' ? [] : [rest];
  };
  return {
    push: (token) => {
      const found = bytesOf(token);
      if (found === null) return [...close(), token];
      isOpen = true;
      return [decoder.decode(found, { stream: true })];
    },
    end: close,
  };
}

/** The byte of a token such as `<0x0A>`; null for any other token. */
function fallbackByte(token: string): Uint8Array | null {
  if (token.length !== 6 || !token.startsWith('<0x') || !token.endsWith('>')) return null;
  const byte = Number.parseInt(token.slice(3, 5), 16);
  return Number.isNaN(byte) ? null : Uint8Array.of(byte);
}

function wordPiece({ prefix, cleanup }: Json): Stage {
  return eachToken((token, isFirst) => {
    let text = token;
    if (!isFirst) {
      const continues = typeof prefix === 'string' && prefix !== '' && token.startsWith(prefix);
      text = continues ? token.slice(prefix.length) : ` ${token}`;
    }
    return cleanup === true ? cleanUpSpaces(text) : text;
  });
}

function replacement(decoder: Json): (token: string) => string {
  const { pattern, content = '' } = decoder as { pattern?: { String?: string }; content?: string };
  const { String: plain } = pattern ?? {};
  if (plain === undefined) throw unsupported(decoder);
  return (token) => token.replaceAll(plain, () => content);
}

function stripOf({ content = '', start = 0, stop = 0 }: Json) {
  return { content: content as string, start: start as number, stop: stop as number };
}

/** The number of times, at most `most`, that a text begins with a character. */
function runAtStart(text: string, char: string, most: number): number {
  let count = 0;
  while (count < most && text[count] === char) count++;
  return count;
}

/** The number of times, at most `most`, that a text ends with a character. */
function runAtEnd(text: string, char: string, most: number): number {
  let count = 0;
  while (count < most && text[text.length - 1 - count] === char) count++;
  return count;
}

function unsupported(decoder: Json): UnsupportedError {
  const pattern = decoder.type === 'Replace' ? ` of ${shown(decoder.pattern)}` : '';
  return new UnsupportedError(
    `tokenizer: the decoder ${String(decoder.type)}${pattern} cannot decode id by id; known: ByteLevel, ByteFallback, Fuse, ` +
      'Metaspace, Replace with a String, Strip, WordPiece and sequences of them; decode all ids at once with decode()',
  );
}

/**
 * Location of the first error in invalid JSON. Messages of JSON.parse contain a position only in some engines and cases, so the
 * column for an error about a line of data is found here. This runs for damaged lines only.
 */

const kSpace = /[ \t\n\r]*/y;
const kEscape = /\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/y;
const kScalar = /(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)(?![\w.+-])/y;

type Expected = 'value' | 'value or ]' | 'key' | 'key or }' | ':' | ', or end' | 'end of text';

class Scanner {
  position = 0;
  constructor(private readonly text: string) {}

  /** Moves past a match of the pattern at the current position; returns false without moving if there is none. */
  skip(pattern: RegExp): boolean {
    pattern.lastIndex = this.position;
    if (!pattern.test(this.text)) return false;
    this.position = pattern.lastIndex;
    return true;
  }

  /** Moves past a character; returns false without moving if another one is at the position. */
  skipChar(char: string): boolean {
    if (this.text[this.position] !== char) return false;
    this.position++;
    return true;
  }

  /** Moves past a string; returns false at the position of the first error if there is no valid one. */
  skipString(): boolean {
    if (!this.skipChar('"')) return false;
    for (;;) {
      const char = this.text[this.position];
      if (char === '"') {
        this.position++;
        return true;
      }
      if (char === undefined || char < ' ') return false;
      if (char === '\\') {
        if (!this.skip(kEscape)) return false;
      } else {
        this.position++;
      }
    }
  }
}

/** The tokens that may follow a finished value, given the open brackets. */
const afterValue = (open: readonly string[]): Expected =>
  open.length > 0 ? ', or end' : 'end of text';

/** Offset (UTF-16 units) of the first character that cannot continue a JSON text; null if `text` is valid JSON. */
export function jsonErrorOffset(text: string): number | null {
  const scanner = new Scanner(text);
  const open: ('{' | '[')[] = [];
  let expected: Expected = 'value';
  for (;;) {
    scanner.skip(kSpace);
    const closer = open.at(-1) === '{' ? '}' : ']';
    if (expected === 'end of text') {
      return scanner.position === text.length ? null : scanner.position;
    } else if (expected === 'value' || expected === 'value or ]') {
      if (expected === 'value or ]' && scanner.skipChar(']')) {
        open.pop();
        expected = afterValue(open);
      } else if (scanner.skipChar('{')) {
        open.push('{');
        expected = 'key or }';
      } else if (scanner.skipChar('[')) {
        open.push('[');
        expected = 'value or ]';
      } else if (
        scanner.skipString() ||
        (text[scanner.position] !== '"' && scanner.skip(kScalar))
      ) {
        expected = afterValue(open);
      } else {
        return scanner.position;
      }
    } else if (expected === 'key' || expected === 'key or }') {
      if (expected === 'key or }' && scanner.skipChar('}')) {
        open.pop();
        expected = afterValue(open);
      } else if (scanner.skipString()) {
        expected = ':';
      } else {
        return scanner.position;
      }
    } else if (expected === ':') {
      if (!scanner.skipChar(':')) return scanner.position;
      expected = 'value';
    } else if (scanner.skipChar(',')) {
      expected = closer === '}' ? 'key' : 'value';
    } else if (scanner.skipChar(closer)) {
      open.pop();
      expected = afterValue(open);
    } else {
      return scanner.position;
    }
  }
}

/**
 * Location of the first error in a damaged JSON text. JSON.parse's messages carry a position only in some engines and cases, so the
 * column in an error about a line of data is found here. Runs on damaged lines only.
 */

const kSpace = /[ \t\n\r]*/y;
const kEscape = /\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/y;
const kScalar = /(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)(?![\w.+-])/y;

type Expected = 'value' | 'value or ]' | 'key' | 'key or }' | ':' | ', or end' | 'end of text';

class Scanner {
  position = 0;
  constructor(private readonly text: string) {}

  /** Moves over a match at the position; false (and no move) if there is none. */
  take(pattern: RegExp): boolean {
    pattern.lastIndex = this.position;
    if (!pattern.test(this.text)) return false;
    this.position = pattern.lastIndex;
    return true;
  }

  takeChar(char: string): boolean {
    if (this.text[this.position] !== char) return false;
    this.position++;
    return true;
  }

  /** Moves past a string or, in a damaged one, to the place of the damage. */
  takeString(): boolean {
    if (!this.takeChar('"')) return false;
    for (;;) {
      const char = this.text[this.position];
      if (char === '"') {
        this.position++;
        return true;
      }
      if (char === undefined || char < ' ') return false;
      if (char === '\\') {
        if (!this.take(kEscape)) return false;
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
    scanner.take(kSpace);
    const closer = open.at(-1) === '{' ? '}' : ']';
    if (expected === 'end of text') {
      return scanner.position === text.length ? null : scanner.position;
    } else if (expected === 'value' || expected === 'value or ]') {
      if (expected === 'value or ]' && scanner.takeChar(']')) {
        open.pop();
        expected = afterValue(open);
      } else if (scanner.takeChar('{')) {
        open.push('{');
        expected = 'key or }';
      } else if (scanner.takeChar('[')) {
        open.push('[');
        expected = 'value or ]';
      } else if (
        scanner.takeString() ||
        (text[scanner.position] !== '"' && scanner.take(kScalar))
      ) {
        expected = afterValue(open);
      } else {
        return scanner.position;
      }
    } else if (expected === 'key' || expected === 'key or }') {
      if (expected === 'key or }' && scanner.takeChar('}')) {
        open.pop();
        expected = afterValue(open);
      } else if (scanner.takeString()) {
        expected = ':';
      } else {
        return scanner.position;
      }
    } else if (expected === ':') {
      if (!scanner.takeChar(':')) return scanner.position;
      expected = 'value';
    } else if (scanner.takeChar(',')) {
      expected = closer === '}' ? 'key' : 'value';
    } else if (scanner.takeChar(closer)) {
      open.pop();
      expected = afterValue(open);
    } else {
      return scanner.position;
    }
  }
}

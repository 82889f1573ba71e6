// The check of free disk space before the work.
import { expect, it } from 'vitest';

interface Space {
  checkSpace(folder: string, megabytes: number, work: string, free: () => number): void;
}

// The script has no types.
const path = '../../scripts/support/space.mjs';
const { checkSpace } = (await import(path)) as Space;

it('reports too little space with both sizes and advice', () => {
  expect(() => checkSpace('/x', 450, 'npm ci', () => 450)).not.toThrow();
  expect(() => checkSpace('/x', 450, 'npm ci', () => 12)).toThrow(
    /^The disk is nearly full: npm ci needs about 450 MB in \/x, 12 MB are free\. Free space and/,
  );
});

// Imports the library, and prints the variables that this process had before and has after, and those that a child of it has.
import { execFileSync } from 'node:child_process';

const before = { ...process.env };
const { ones } = await import('balora/ops');
await ones([2 ** 20]).data();
const after = { ...process.env };
const child = Object.fromEntries(
  execFileSync('env', ['-0'], { encoding: 'utf8' })
    .split('\0')
    .filter((line) => line !== '')
    .map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
);
console.log(JSON.stringify({ before, after, child }));

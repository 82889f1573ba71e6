// Asks a side process while this process has almost no files left to open, then again with all of them, then where the system cannot
// start Node, and again where it can; prints the results. The shell sets the limit of open files.
import { closeSync, openSync } from 'node:fs';
import { SideProcess } from '../../../dist/io/side_process.js';

const side = new SideProcess({
  ...{ module: '../test/io/programs/side_process.mjs', setup: null, heapMiB: 64 },
});
const ask = () =>
  side.ask({ do: 'echo', value: 'answered' }, { onEnd: () => new Error('ended') }).then(
    ({ echo }) => echo,
    ({ code, message }) => `${code}: ${message}`,
  );

const open = [];
try {
  for (;;) open.push(openSync('/dev/null'));
} catch (error) {
  if (error.code !== 'EMFILE') throw error;
}
// Too few for the pipes of a process.
closeSync(open.pop());
console.log(await ask());
for (const file of open) closeSync(file);
console.log(await ask());
await side.end();
const { execPath } = process;
process.execPath = '/none/node';
console.log(await ask());
process.execPath = execPath;
console.log(await ask());

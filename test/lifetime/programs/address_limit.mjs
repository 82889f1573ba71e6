// Asks for a tensor above a limit of this process's addresses (RLIMIT_AS), and prints the error.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { synchronize } from 'balora';
import { ones, zeros } from 'balora/ops';

await ones([2]).data();
const kib = Number(/^VmSize:\s*(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
execFileSync('prlimit', ['--pid', String(process.pid), `--as=${(kib + 2 ** 20) * 1024}`]);
zeros([2 ** 29]);
await synchronize().catch(({ code, message }) => console.log(code, message));
console.log(await ones([2]).data());

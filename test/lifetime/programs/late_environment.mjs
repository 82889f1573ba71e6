// Sets variables that oneDNN and the engine know after balora has been imported, and then multiplies: nobody may read them any more,
// since another thread would read while this one writes.
import { full, matmul } from 'balora/ops';

process.env.ONEDNN_VERBOSE = '1';
process.env.BALORA_EXACT_BLOCKS = '1';
const a = full([64, 64], 1);
console.log((await matmul(a, a).data())[0]);

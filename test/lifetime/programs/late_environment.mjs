// Sets variables that oneDNN and the engine know after balora has been imported, and then multiplies: nobody may read them any more,
// since another thread would read while this one writes. With `device` as an argument, the last line says whether the memory of that
// device, which is opened after the import, is taken in segments, as it is unless BALORA_EXACT_BLOCKS is 1.
import { memoryStats, synchronize } from 'balora';
import { full, matmul } from 'balora/ops';

const [device] = process.argv.slice(2);
process.env.ONEDNN_VERBOSE = '1';
process.env.BALORA_EXACT_BLOCKS = '1';
const a = full([64, 64], 1);
console.log((await matmul(a, a).data())[0]);
if (device !== undefined) {
  full([64, 64], 1, { device }).dispose();
  await synchronize(device);
  console.log(memoryStats({ device }).cachedBytes > 0);
}

// Writes a 1 MiB tensor into the working folder, and prints its error and the remaining files as JSON.
import { readdirSync } from 'node:fs';
import { tensor } from 'balora';
import { saveSafetensors } from 'balora/io';

process.on('SIGXFSZ', () => {}); // writes beyond the limit then fail with EFBIG
const error = await saveSafetensors('big', { w: tensor(new Float32Array(1 << 18)) }).catch(
  (failure) => failure,
);
console.log(JSON.stringify({ code: error.code, message: error.message, files: readdirSync('.') }));

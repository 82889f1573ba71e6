// Writes a 1 MiB tensor into the working folder and tells, as JSON, how it failed and what was left there.
import { readdirSync } from 'node:fs';
import { tensor } from 'balora';
import { saveSafetensors } from 'balora/io';

process.on('SIGXFSZ', () => {}); // the limit then shows as EFBIG
const error = await saveSafetensors('big', { w: tensor(new Float32Array(1 << 18)) }).catch(
  (failure) => failure,
);
console.log(JSON.stringify({ code: error.code, message: error.message, files: readdirSync('.') }));

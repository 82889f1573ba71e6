// Claims output folders when its parent says so: for each message with a folder it answers whether it has it, and after a message
// "release" it gives back what it has.
import { claimOutput } from '../../../dist/train/output.js';

let claimed = null;
process.on('message', async (message) => {
  if (message === 'release') {
    await claimed?.release();
    claimed = null;
    process.send('released');
    return;
  }
  try {
    claimed = await claimOutput(message, { overwrite: false, resume: true });
    process.send('won');
  } catch (error) {
    process.send(error.message);
  }
});
process.send('ready');

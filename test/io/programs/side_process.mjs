// The process of test/io/side_process.test.ts: answers what it is asked, spins, or fills its memory.
import { FormatError } from '../../../dist/errors.js';
import { answerRequests } from '../../../dist/io/side_process.js';

await answerRequests(async (setup) => async (request) => {
  switch (request.do) {
    case 'echo':
      return { setup, pid: process.pid, echo: request.value };
    case 'format':
      throw new FormatError('file: damaged', { path: 'file', advice: 'mend it' });
    case 'fail':
      throw new Error('no good');
    case 'spin':
      for (;;);
    case 'fill': {
      const list = [];
      for (;;) list.push(list.length);
    }
  }
});

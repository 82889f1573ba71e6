// A target for the tests of the attack itself: each input shows one kind of fault, or none.
import { openSync } from 'node:fs';
import { ArgumentError } from '../../dist/errors.js';
import { Finding } from './finding.mjs';

const kept = [];

const kFaults = {
  fine: () => {},
  refused: () => {
    throw new ArgumentError('planted: the subject is refused; take another');
  },
  foreign: () => undefined.x,
  wrong: () => {
    throw new Finding('a planted wrong number');
  },
  nameless: () => {
    throw new ArgumentError('something is refused; take another');
  },
  unclear: () => {
    throw new ArgumentError('planted: must be a number, got [object Object]');
  },
  files: () => {
    kept.push(openSync('/dev/null'));
  },
  memory: () => {
    kept.push(Buffer.alloc(450 << 20, 1));
    kept.pop();
  },
  rejection: async () => {
    Promise.reject(new Error('planted'));
    await new Promise((resolve) => setTimeout(resolve, 5));
  },
  crash: () => process.abort(),
  hang: () => {
    for (;;);
  },
  unprintable: () => {
    throw Object.assign(new ArgumentError('planted'), { message: 'planted\nerror: forged\u001b[2J' });
  },
  last: () => {},
};

export default {
  what: 'planted faults',
  input: (random, _state, index) => ({ number: random.below(1e6), fault: Object.keys(kFaults)[index % 13] }),
  run: ({ fault }) => kFaults[fault](),
  mentions: () => ['planted'],
  hangSeconds: 8,
};

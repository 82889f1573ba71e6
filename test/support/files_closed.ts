// Runs before each test file, and fails it where it leaves an open file to the garbage collector: Node 26 ends the process for that
// whenever the collector happens to run, older ones warn.
import { setTimeout } from 'node:timers/promises';
import { afterAll, expect } from 'vitest';
import { collect } from './collect.ts';

const left: string[] = [];
process.on('warning', ({ message }) => {
  if (/on garbage collection/.test(message)) left.push(message);
});

afterAll(async () => {
  collect();
  await setTimeout(1); // warnings come after the collector's finalizers
  expect(left).toEqual([]);
});

import { defineConfig } from 'vitest/config';

// Tests that measure, or that start processes of their own, run one file at a time after all the others.
const kAlone = ['test/lifetime/**/*.test.ts', 'test/package/**/*.test.ts'];

// Forked processes: an addon that crashes takes one test file with it, and every file sees a fresh engine.
export default defineConfig({
  test: {
    pool: 'forks',
    globalSetup: ['test/support/global_setup.mjs'],
    testTimeout: 30_000,
    hookTimeout: 30_000,
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: kAlone,
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: { name: 'alone', include: kAlone, maxWorkers: 1, sequence: { groupOrder: 1 } },
      },
    ],
  },
});

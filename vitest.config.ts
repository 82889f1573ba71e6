import { defineConfig } from 'vitest/config';

// Forked processes: an addon that crashes takes one test file with it, and every file sees a fresh engine.
export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 30_000,
    passWithNoTests: true,
  },
});

// Runs before each test file, and leaves with each test how many assertions it made: `npm test` adds them up.
import { afterEach, expect } from 'vitest';

declare module 'vitest' {
  interface TaskMeta {
    /** Number of assertions that were evaluated, those within loops each time. */
    assertions?: number;
  }
}

afterEach(({ task }) => {
  task.meta.assertions = expect.getState().assertionCalls;
});

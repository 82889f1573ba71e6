// The limits of templates depend on methods inside of the package that runs them. (What the limits are: chat_template.test.ts.)
import { readFileSync } from 'node:fs';
import { afterEach, expect, it, vi } from 'vitest';

afterEach(() => {
  vi.doUnmock('@huggingface/jinja');
  vi.resetModules();
});

it('a version of the package without a method that has a limit is refused', async () => {
  vi.doMock('@huggingface/jinja', () => ({
    Environment: class {},
    Interpreter: class {
      evaluate(): void {}
      applyFilter(): void {}
      evaluateFor(): void {}
    },
  }));
  await expect(import('../../lib/text/bounded_interpreter.ts')).rejects.toThrow(
    /jinja has no Interpreter.evaluateCallExpression; install the version/,
  );
});

it('the package is installed in the version that the limits were written for', () => {
  const { dependencies } = JSON.parse(readFileSync('package.json', 'utf8')) as {
    dependencies: Record<string, string>;
  };
  expect(dependencies['@huggingface/jinja']).toMatch(/^\d+\.\d+\.\d+$/);
});

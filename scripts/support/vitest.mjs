// Runs projects of vitest.config.ts, and counts their tests and assertions.
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { delimiter, dirname } from 'node:path';
import { inRoot, runVisible } from './shell.mjs';

/** Names a test as test/left_out.json does. */
const nameOf = ({ project, file }, test) => `${project}: ${file}: ${test.name}`;

/** A line for each failed test of a file, or lines for a file that could not run. */
function failuresOfFile(file) {
  const failed = file.tests.filter(({ state }) => state === 'failed');
  const lines = failed.map((test) => `${nameOf(file, test)}: ${test.error}`);
  const broken = file.errors.map((error) => `${file.project}: ${file.file}: ${error}`);
  const unknown = file.state === 'failed' && lines.length + broken.length === 0;
  return [...lines, ...broken, ...(unknown ? [`${file.project}: ${file.file} failed`] : [])];
}

/** Counts of a report of vitest_reporter.mjs. */
export function countsOf({ files, errors }) {
  const tests = files.flatMap((file) =>
    file.tests.map((test) => ({ ...test, path: nameOf(file, test) })),
  );
  const failures = [...files.flatMap(failuresOfFile), ...errors];
  return {
    passed: tests.filter(({ state }) => state === 'passed').length,
    failed: failures.length,
    assertions: tests.reduce((sum, test) => sum + test.assertions, 0),
    failures,
    leftOut: tests.filter(({ state }) => state === 'skipped').map(({ path }) => path),
    projects: [...new Set(files.map(({ project }) => project))],
  };
}

/**
 * Runs projects.
 * @param name names the report in build/
 * @param projects their names; one that vitest.config.ts does not have is an error
 * @param variables environment variables to add, or where undefined to leave out
 * @param node the Node that runs them, and whatever they start by that name; default: this one
 * @returns counts; `leftOut` has the names of skipped tests, `projects` those of the projects that ran
 */
export function runVitest(name, projects, variables = {}, node = process.execPath) {
  const report = inRoot('build', `vitest-${name}.json`);
  rmSync(report, { force: true });
  const reporters = ['default', inRoot('scripts', 'support', 'vitest_reporter.mjs')];
  const args = [
    ...reporters.map((reporter) => `--reporter=${reporter}`),
    ...projects.map((project) => `--project=${project}`),
  ];
  const vitest = inRoot('node_modules', 'vitest', 'vitest.mjs');
  const path =
    node === process.execPath ? {} : { PATH: `${dirname(node)}${delimiter}${process.env.PATH}` };
  const env = { ...path, ...variables, BALORA_VITEST_REPORT: report };
  const status = runVisible(node, [vitest, 'run', ...args], { env });
  if (!existsSync(report)) {
    return { passed: 0, failed: 1, failures: ['vitest ended without a report'], leftOut: [] };
  }
  const counts = countsOf(JSON.parse(readFileSync(report, 'utf8')));
  return status !== 0 && counts.failed === 0 ? { ...counts, failed: 1 } : counts;
}

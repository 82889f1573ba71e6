// A reporter of vitest that writes what `npm test` needs of a run as JSON, into the file that BALORA_VITEST_REPORT names: vitest's own
// JSON has neither the projects nor the errors outside of tests.
import { writeFileSync } from 'node:fs';

const firstLine = (error) => `${error?.message ?? error}`.split('\n')[0];

const testOf = (test) => {
  const { state, note, errors } = test.result();
  return {
    ...{ name: test.fullName, state, assertions: test.meta().assertions ?? 0 },
    ...(note ? { note } : {}),
    ...(errors?.length ? { error: firstLine(errors[0]) } : {}),
  };
};

const fileOf = (module) => ({
  ...{ project: module.project.name, file: module.relativeModuleId, state: module.state() },
  seconds: module.diagnostic().duration / 1000,
  errors: module.errors().map(firstLine),
  tests: [...module.children.allTests()].map(testOf),
});

export default class {
  onTestRunEnd(modules, errors) {
    const report = { files: modules.map(fileOf), errors: errors.map(firstLine) };
    writeFileSync(process.env.BALORA_VITEST_REPORT, JSON.stringify(report));
  }
}

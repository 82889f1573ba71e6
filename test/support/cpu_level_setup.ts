// Runs before each test file of a project on older instructions, and checks that products use them: the file would otherwise test
// the best instructions again.
import { deviceInfo } from '../../lib/device.ts';
import { kTestCpuLevel } from './cpu_levels.ts';

const { instructions } = deviceInfo('cpu');
if (instructions !== kTestCpuLevel) {
  throw new Error(`products run on ${instructions}, not on ${kTestCpuLevel}`);
}

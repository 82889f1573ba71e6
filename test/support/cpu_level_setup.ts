// Runs before each file of a project that is held to older instructions: they must be what the products run on, or the file
// would test the best ones again.
import { deviceInfo } from '../../lib/device.ts';
import { kTestCpuLevel } from './cpu_levels.ts';

const { instructions } = deviceInfo('cpu');
if (instructions !== kTestCpuLevel) {
  throw new Error(`products run on ${instructions}, not on ${kTestCpuLevel}`);
}

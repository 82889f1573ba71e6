// Runs before each test file of a project that names a device in BALORA_TEST_DEVICE, and makes it the default device, so that the
// same tests serve every device.
import { setDefaultDevice } from '../../lib/device.ts';
import { kTestDevice } from './device.ts';

setDefaultDevice(kTestDevice);

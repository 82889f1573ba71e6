// Runs before each file of a project that names a device in BALORA_TEST_DEVICE: what the tests make without naming a
// device is made there, so that one list of tests serves every device.
import { setDefaultDevice } from '../../lib/device.ts';
import { kTestDevice } from './device.ts';

setDefaultDevice(kTestDevice);

/** The device that the tests run on: BALORA_TEST_DEVICE, default cpu. */
export const kTestDevice = process.env.BALORA_TEST_DEVICE ?? 'cpu';
